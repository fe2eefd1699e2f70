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

    A structure that is in the truth but not in the prediction, or the other way round, scores the length of the image's
    diagonal, the worst distance there is; one in neither is by `empty` (``empty_masks.py`` says more). MONAI's gives
    infinity or NaN there, so that a missed structure either spoils the mean or improves it.

    Args:
        spacing: mm per voxel and axis; None for that of each volume, which the truth has as a ``MetaTensor``.
        include_background: whether channel 0 counts.
        definition: papers mean two things by the name. `larger`: the larger of the 95th percentiles of the distances
            from the predicted surface to the true one and back, as MONAI has it. `pooled`: the 95th percentile of both
            lists of distances put together, as medpy's ``hd95``, which TransUNet and nnFormer report (in voxels, as
            spacing 1, 1, 1 has it); never more than the larger one but for interpolation.
        empty: what a structure in neither mask scores: `leave_out` of the mean (NaN), or `perfect`, 0.

    Takes one-hot prediction and truth (B, C, D, H, W), returns (B, C) or (B, C - 1) per batch. ``aggregate`` is the
    mean, over volumes, of a volume's mean over structures; NaN where none counts in any volume.

    Raises:
        ValueError: for another definition or rule; the truth has no spacing and none is given.
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
    """mm per voxel and axis of a volume of its own.

    Raises:
        ValueError: it carries none.
    """
    if not isinstance(y, MetaTensor) or y.affine.ndim != 2:
        raise ValueError(
            f"{metric} has no `spacing` and the truth carries none (an affine): give {metric} the `spacing` in mm."
        )
    return [float(size) for size in torch.linalg.norm(y.affine[:3, :3].double(), dim=0)]
