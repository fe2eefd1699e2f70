from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ..precision import without_autocast

__all__ = ["BYOLLoss"]


class BYOLLoss(nn.Module):
    """Squared distance between unit vectors: predictions of one view and the teacher's projections of the other.

    It is the mean of ``||p - t||^2 = 2 - 2 cos(p, t)`` over tokens, summed over both directions: 0 to 8. No gradient
    reaches the targets. Source: Grill et al., BYOL, NeurIPS 2020, equation 2; Hu et al., SimTROT, equation (2).

    ``forward(prediction, image)`` reads ``prediction1``, ``prediction2``, ``target1`` and ``target2`` (B, T, C);
    ``image`` is there because MONAI's trainer passes it.
    """

    def forward(self, prediction: dict[str, torch.Tensor], image: torch.Tensor | None = None) -> torch.Tensor:
        def distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
            return 2 - 2 * F.cosine_similarity(student.float(), teacher.detach().float(), dim=-1).mean()

        with without_autocast(prediction["prediction1"].device):
            return distance(prediction["prediction1"], prediction["target2"]) + distance(
                prediction["prediction2"], prediction["target1"]
            )
