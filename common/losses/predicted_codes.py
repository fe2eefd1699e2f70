from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["PredictedCodesLoss"]


class PredictedCodesLoss(nn.Module):
    """InfoNCE of predicted codes (van den Oord et al., "Representation Learning with Contrastive Predictive Coding",
    equation 4), in float32 under autocast.

    The mean over predictions ``p`` of ``-log(exp(p.z) / sum of exp(p.z'))``, with ``z`` the code that it predicts and
    ``z'`` all codes of the batch, those of its own image included.

    ``forward(prediction, image)`` reads ``codes`` (B, T, C), ``predictions`` (B, M, C), and ``predicted`` (B, M), the
    number of a prediction's code among those of its image; it returns a scalar.
    """

    def forward(self, prediction: Mapping[str, torch.Tensor], image: torch.Tensor | None = None) -> torch.Tensor:
        codes, made, number = (prediction[name] for name in ("codes", "predictions", "predicted"))
        with torch.autocast(codes.device.type, enabled=False):
            logits = made.float().flatten(0, 1) @ codes.float().flatten(0, 1).T
            first = torch.arange(len(codes), device=codes.device)[:, None] * codes.shape[1]
            return F.cross_entropy(logits, (first + number).flatten())
