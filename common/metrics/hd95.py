from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from monai.metrics import HausdorffDistanceMetric

__all__ = ["HD95"]


class HD95(HausdorffDistanceMetric):
    """95th percentile of the symmetric Hausdorff distance in mm, with a stated rule for empty masks.

    A structure that is in the truth but not in the prediction, or the other way round, scores the length of the image's
    diagonal, the worst distance there is; one that is in neither is left out (NaN) of the mean. MONAI's metric gives
    infinity or NaN there, so that a missed structure either spoils the mean or improves it.

    Args:
        spacing: mm per voxel and axis.
        include_background: whether channel 0 counts.

    Takes one-hot prediction and truth (B, C, D, H, W), returns (B, C) or (B, C - 1) per batch.
    """

    def __init__(self, spacing: Sequence[float], include_background: bool = False) -> None:
        super().__init__(include_background=include_background, percentile=95)
        self.spacing = [float(size) for size in spacing]

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor, **kwargs) -> torch.Tensor:  # type: ignore[override]
        distance = super()._compute_tensor(y_pred, y, spacing=self.spacing, **kwargs)
        first = 0 if self.include_background else 1
        predicted, true = (mask[:, first:].flatten(2).any(-1) for mask in (y_pred, y))
        diagonal = math.dist([0.0] * len(self.spacing), [n * s for n, s in zip(y.shape[2:], self.spacing, strict=True)])
        distance = distance.to(true.device)
        distance = torch.where(predicted ^ true, torch.full_like(distance, diagonal), distance)
        return torch.where(predicted | true, distance, torch.full_like(distance, math.nan))
