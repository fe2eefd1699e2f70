from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.loss import _Loss

from ..precision import without_autocast
from .deep_supervision import DeepSupervisionLoss

__all__ = ["SegmentedLabelsLoss"]


class SegmentedLabelsLoss(nn.Module):
    """Apply a segmentation loss to a pretext that makes its own labels.

    Args:
        loss: takes logits (B, K, *spatial) and labels (B, 1, *spatial), such as MONAI's ``DiceCELoss``.

    ``forward(prediction, image)`` returns a scalar from ``logits`` and ``labels`` of the prediction, in float32 under
    autocast. For a list of logits (deep supervision, finest first) it is the weighted mean of their losses with weights
    1, 1/2, 1/4 and so on, as in nnU-Net.
    """

    def __init__(self, loss: _Loss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, prediction: Mapping[str, Any], image: torch.Tensor) -> torch.Tensor:
        labels, logits = prediction["labels"], prediction["logits"]
        levels = logits if isinstance(logits, list | tuple) else [logits]
        with without_autocast(labels.device):
            return DeepSupervisionLoss(self.loss)(levels, labels.float())
