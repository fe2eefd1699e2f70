from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional as F

from ..precision import without_autocast

__all__ = ["PredictedCodesLoss"]


class PredictedCodesLoss(nn.Module):
    """InfoNCE of predicted codes; float32 under autocast.

    It is the mean of ``-log(exp(p.z) / sum of exp(p.z'))`` over predictions ``p``. ``z`` is the code to predict; ``z'``
    are all codes of the batch, including those of the same image. Source: van den Oord et al., "Representation Learning
    with Contrastive Predictive Coding", equation 4.

    ``forward(prediction, image)`` reads ``codes`` (B, T, C), ``predictions`` (B, M, C), and ``predicted`` (B, M), the
    index of each predicted code in its image; it returns a scalar.
    """

    def forward(self, prediction: Mapping[str, torch.Tensor], image: torch.Tensor | None = None) -> torch.Tensor:
        codes, made, number = (prediction[name] for name in ("codes", "predictions", "predicted"))
        with without_autocast(codes.device):
            logits = made.float().flatten(0, 1) @ codes.float().flatten(0, 1).T
            first = torch.arange(len(codes), device=codes.device)[:, None] * codes.shape[1]
            return F.cross_entropy(logits, (first + number).flatten())
