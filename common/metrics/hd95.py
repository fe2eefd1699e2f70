from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from monai.metrics import HausdorffDistanceMetric
from monai.metrics.utils import get_edge_surface_distance

from ..volumes import diagonal
from .empty_masks import score_empty

__all__ = ["HD95"]


class HD95(HausdorffDistanceMetric):
    """95th percentile of the symmetric Hausdorff distance in mm, with a stated rule for empty masks.

    A structure that is in the truth but not in the prediction, or the other way round, scores the length of the image's
    diagonal, the worst distance there is; one that is in neither is left out (NaN) of the mean (``empty_masks.py`` says
    why). MONAI's metric gives infinity or NaN there, so that a missed structure either spoils the mean or improves it.

    Args:
        spacing: mm per voxel and axis.
        include_background: whether channel 0 counts.
        definition: papers mean two things by the name. `larger`: the larger of the 95th percentiles of the distances
            from the predicted surface to the true one and back, as MONAI has it. `pooled`: the 95th percentile of both
            lists of distances put together, as medpy's ``hd95``, which TransUNet and nnFormer report (in voxels, as
            spacing 1, 1, 1 has it); never more than the larger one but for interpolation.

    Takes one-hot prediction and truth (B, C, D, H, W), returns (B, C) or (B, C - 1) per batch.

    Raises:
        ValueError: for another definition.
    """

    def __init__(
        self,
        spacing: Sequence[float],
        include_background: bool = False,
        definition: Literal["larger", "pooled"] = "larger",
    ) -> None:
        if definition not in ("larger", "pooled"):
            raise ValueError(f"HD95 has the definitions 'larger' and 'pooled', not {definition!r}: give one of these.")
        super().__init__(include_background=include_background, percentile=95)
        self.spacing = [float(size) for size in spacing]
        self.definition = definition

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor, **kwargs) -> torch.Tensor:  # type: ignore[override]
        first = 0 if self.include_background else 1
        if self.definition == "pooled":
            distance = self._pooled(y_pred[:, first:], y[:, first:])
        else:
            distance = super()._compute_tensor(y_pred, y, spacing=self.spacing, **kwargs).to(y.device)
        return score_empty(distance, y_pred[:, first:], y[:, first:], diagonal(y.shape[2:], self.spacing))

    def _pooled(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        found = torch.full(y.shape[:2], math.nan, device=y.device)
        for sample, label in np.ndindex(*y.shape[:2]):
            masks = y_pred[sample, label], y[sample, label]
            if all(mask.any() for mask in masks):
                _, distances, _ = get_edge_surface_distance(*masks, spacing=self.spacing, symmetric=True)
                # numpy, since torch.quantile refuses more than 16 million values
                both = np.concatenate([np.asarray(torch.as_tensor(x).cpu()) for x in distances])
                found[sample, label] = float(np.percentile(both, 95))
        return found
