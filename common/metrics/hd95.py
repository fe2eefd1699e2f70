from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from monai.data import MetaTensor
from monai.metrics import HausdorffDistanceMetric
from monai.metrics.utils import get_edge_surface_distance

from ..volumes import diagonal
from .empty_masks import Empty, check_empty, mean_of_cases, score_empty

__all__ = ["HD95", "volume_spacing"]


class HD95(HausdorffDistanceMetric):
    """95th percentile of the symmetric Hausdorff distance in mm, with a stated rule for empty masks.

    A structure in only one of truth and prediction scores the length of the image's diagonal, the worst possible
    distance. For a structure in neither, `empty` decides (``empty_masks.py`` says more). MONAI's metric gives infinity
    or NaN, so a missed structure either spoils the mean or improves it.

    Args:
        spacing: mm per voxel and axis; None reads it from each volume, if the truth is a ``MetaTensor``.
        include_background: whether channel 0 counts.
        definition: papers use the name for two things. `larger`: the larger of the two 95th percentiles of distances,
            from the predicted surface to the true one and back, as in MONAI. `pooled`: the 95th percentile of both
            lists of distances together, as in medpy's ``hd95``, which TransUNet and nnFormer report (in voxels, as with
            spacing 1, 1, 1). Except for interpolation, it is never above `larger`.
        empty: score of a structure in neither mask: `leave_out` of the mean (NaN), or `perfect`, 0.

    Takes one-hot prediction and truth (B, C, D, H, W), returns (B, C) or (B, C - 1) per batch. ``aggregate`` is the
    mean over volumes of the mean over structures; NaN if none counts in any volume.

    Raises:
        ValueError: the definition or rule is unknown; the truth has no spacing and none is given.
    """

    def __init__(
        self,
        spacing: Sequence[float] | None = None,
        include_background: bool = False,
        definition: Literal["larger", "pooled"] = "larger",
        empty: Empty = "leave_out",
    ) -> None:
        if definition not in ("larger", "pooled"):
            raise ValueError(f"HD95 has the definitions 'larger' and 'pooled', not {definition!r}: give one of these.")
        super().__init__(include_background=include_background, percentile=95)
        self.spacing = None if spacing is None else [float(size) for size in spacing]
        self.definition = definition
        self.empty = check_empty(empty, "HD95")

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor, **kwargs) -> torch.Tensor:  # type: ignore[override]
        first = 0 if self.include_background else 1
        spacing = self.spacing or volume_spacing(y, "HD95")
        y_pred, y = (mask.as_tensor() if isinstance(mask, MetaTensor) else mask for mask in (y_pred, y))
        if self.definition == "pooled":
            distance = self._pooled(y_pred[:, first:], y[:, first:], spacing)
        else:
            distance = super()._compute_tensor(y_pred, y, spacing=spacing, **kwargs).to(y.device)
        worst = diagonal(y.shape[2:], spacing)
        return score_empty(distance, y_pred[:, first:], y[:, first:], worst, 0.0, self.empty)

    def aggregate(self, reduction: Any = None) -> torch.Tensor:  # type: ignore[override]
        """The mean, a scalar."""
        scores: Any = self.get_buffer()
        return mean_of_cases(scores)

    def _pooled(self, y_pred: torch.Tensor, y: torch.Tensor, spacing: Sequence[float]) -> torch.Tensor:
        found = torch.full(y.shape[:2], math.nan, device=y.device)
        for sample, label in np.ndindex(*y.shape[:2]):
            masks = y_pred[sample, label], y[sample, label]
            if all(mask.any() for mask in masks):
                _, distances, _ = get_edge_surface_distance(*masks, spacing=list(spacing), symmetric=True)
                # numpy, since torch.quantile refuses more than 16 million values
                both = np.concatenate([np.asarray(torch.as_tensor(x).cpu()) for x in distances])
                found[sample, label] = float(np.percentile(both, 95))
        return found


def volume_spacing(y: torch.Tensor, metric: str) -> list[float]:
    """Spacing of a volume, mm per voxel and axis.

    Raises:
        ValueError: it has none.
    """
    if not isinstance(y, MetaTensor) or y.affine.ndim != 2:
        raise ValueError(
            f"{metric} has no `spacing` and the truth carries none (an affine): give {metric} the `spacing` in mm."
        )
    return [float(size) for size in torch.linalg.norm(y.affine[:3, :3].double(), dim=0)]
