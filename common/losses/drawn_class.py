from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional as F

from ..precision import without_autocast

__all__ = ["DrawnClassLoss"]


class DrawnClassLoss(nn.Module):
    """Cross-entropy for a pretext that draws a class for each image and predicts it; float32 under autocast.

    ``forward(prediction, image)`` reads ``logits`` (B, K) and ``labels`` (B,) and returns a scalar.
    """

    def forward(self, prediction: Mapping[str, torch.Tensor], image: torch.Tensor | None = None) -> torch.Tensor:
        logits = prediction["logits"]
        with without_autocast(logits.device):
            return F.cross_entropy(logits.float(), prediction["labels"])
