from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from monai.metrics import HausdorffDistanceMetric

from ..tensors import plain_tensor
from ..volumes import diagonal
from .empty_masks import Empty, MeanOfCases, check_empty, occurs, score_empty
from .surfaces import of_distances, volume_spacing

__all__ = ["HD95"]


class HD95(MeanOfCases, HausdorffDistanceMetric):
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
        y_pred, y = (plain_tensor(mask) for mask in (y_pred, y))
        if self.definition == "pooled":
            pooled = of_distances(y_pred[:, first:], y[:, first:], spacing, _percentile)
            distance = pooled.to(torch.get_default_dtype())
        else:
            distance = super()._compute_tensor(y_pred, y, spacing=spacing, **kwargs).to(y.device)
        worst = diagonal(y.shape[2:], spacing)
        return score_empty(distance, occurs(y_pred[:, first:]), occurs(y[:, first:]), worst, 0.0, self.empty)


def _percentile(distances: np.ndarray) -> float:
    # numpy, since torch.quantile refuses more than 16 million values
    return float(np.percentile(distances, 95))
