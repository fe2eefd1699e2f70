"""Metrics that liver challenges report beside Dice: overlap error, volume difference, mean surface distance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..tensors import plain_tensor
from ..volumes import diagonal
from .empty_masks import Empty, MeanOfCases, check_empty, occurs, score_empty
from .surfaces import of_distances, volume_spacing
from .voxel_counts import count_voxels

__all__ = ["ASSD", "RVD", "VOE"]


class _OfMasks(MeanOfCases):
    """One number per volume and class, by the rule for empty masks."""

    def __init__(self, include_background: bool = False, empty: Empty = "leave_out") -> None:
        super().__init__()
        self.include_background = include_background
        self.empty = check_empty(empty, type(self).__name__)

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        assert y is not None
        whole = y
        first = 0 if self.include_background else 1
        y_pred, y = (plain_tensor(mask) for mask in (y_pred, y))
        y_pred, y = y_pred[:, first:], y[:, first:]
        score, worst = self._score(y_pred, y, whole), self._worst(whole)
        return score_empty(score, occurs(y_pred), occurs(y), worst, 0.0, self.empty).float()

    def _score(self, y_pred: torch.Tensor, y: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def _worst(self, whole: torch.Tensor) -> float:
        return 1.0


class VOE(_OfMasks):
    """Volumetric overlap error, 1 - intersection / union; 1 for a class that is missed or invented.

    Args:
        include_background: whether channel 0 counts.
        empty: what a class in neither mask scores: `leave_out` of the mean (NaN), or `perfect`, 0.

    Takes one-hot prediction and truth (B, C, *spatial), returns (B, C) or (B, C - 1) per batch. ``aggregate`` is the
    mean, over volumes, of a volume's mean over classes; NaN where none counts in any volume.

    Raises:
        ValueError: for another rule.
    """

    def _score(self, y_pred: torch.Tensor, y: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
        both, sizes = _sizes(y_pred, y)
        return 1 - both / (sizes.sum(0) - both)


class RVD(_OfMasks):
    """Relative volume difference, |predicted - true| / true; 1 for a class that is missed or invented.

    The value has no sign, unlike in LiTS' tables: with a sign, too large and too small volumes would cancel. Takes and
    returns what ``VOE`` does.
    """

    def _score(self, y_pred: torch.Tensor, y: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
        predicted, true = _sizes(y_pred, y)[1]
        return (predicted - true).abs() / true


class ASSD(_OfMasks):
    """Average symmetric surface distance in mm: the mean of all distances from each surface to the other.

    A missed or invented class scores the length of the image's diagonal, as in ``HD95``.

    Args:
        spacing: mm per voxel and axis; None reads it from each volume, if the truth is a ``MetaTensor``.
        include_background, empty: as in ``VOE``.
    """

    def __init__(
        self, spacing: Sequence[float] | None = None, include_background: bool = False, empty: Empty = "leave_out"
    ) -> None:
        super().__init__(include_background, empty)
        self.spacing = None if spacing is None else [float(size) for size in spacing]

    def _score(self, y_pred: torch.Tensor, y: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
        spacing = self.spacing or volume_spacing(whole, "ASSD")
        return of_distances(y_pred, y, spacing, lambda distances: float(distances.mean(dtype=np.float64)))

    def _worst(self, whole: torch.Tensor) -> float:
        return diagonal(whole.shape[2:], self.spacing or volume_spacing(whole, "ASSD"))


def _sizes(y_pred: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Voxels in the overlap of both masks (B, C), and in each mask (2, B, C)."""
    both, predicted, true = (count_voxels(mask.flatten(2)) for mask in (y_pred * y, y_pred, y))
    return both, torch.stack((predicted, true))
