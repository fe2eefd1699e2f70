"""Dice of each volume, and of all volumes pooled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.metrics import CumulativeIterationMetric

from ..tensors import plain_tensor
from .empty_masks import Empty, MeanOfCases, check_empty, score_empty
from .voxel_counts import count_voxels

__all__ = ["ClassDice", "PooledDice"]


class ClassDice(MeanOfCases):
    """Dice of each volume and class, with the same rule for empty masks as ``HD95``.

    A missed or invented class scores 0. MONAI's ``MeanDice`` leaves out an invented class, so false positives in a scan
    without the structure cost nothing (``empty_masks.py`` says more).

    Args:
        classes: channels to score, such as the 8 of BTCV's 13 organs that papers report; None for all.
        include_background: whether channel 0 counts where `classes` is None.
        empty: score of a class in neither mask: `leave_out` of the mean (NaN), or `perfect`, 1.

    Takes one-hot prediction and truth (B, C, *spatial), returns (B, classes) per batch. ``aggregate`` is the mean over
    volumes of the mean over classes; NaN if no class counts in any volume. Raises: ValueError: the rule is unknown.
    """

    def __init__(
        self, classes: Sequence[int] | None = None, include_background: bool = False, empty: Empty = "leave_out"
    ) -> None:
        super().__init__()
        self.empty = check_empty(empty, "ClassDice")
        self.chosen: Any = slice(0 if include_background else 1, None) if classes is None else list(classes)

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        assert y is not None
        y_pred, y = (plain_tensor(mask) for mask in (y_pred, y))
        y_pred, y = y_pred[:, self.chosen].flatten(2), y[:, self.chosen].flatten(2)
        both, predicted, true = (count_voxels(mask) for mask in (y_pred * y, y_pred, y))
        return score_empty(2 * both / (predicted + true), predicted > 0, true > 0, 0.0, 1.0, self.empty).float()


class PooledDice(CumulativeIterationMetric):
    """Dice of all volumes pooled: intersections and sizes are added up, then divided.

    This is the metric of TransSeg's published code (``eval_metrics``). It weights volumes by the size of a structure
    and can differ much from the mean Dice of the volumes. The published code averages the values of its GPUs; here all
    volumes are pooled.

    Args:
        classes: channels to average; None for all but the background. A class that is neither predicted nor true
            anywhere is left out; a class that is missed everywhere, or only predicted, counts 0.
        per_class: return the Dice of each class instead of their mean; NaN for a class that occurs nowhere.

    Takes one-hot prediction and truth (B, C, *spatial); ``aggregate`` returns a scalar, or (classes,) with `per_class`.
    ``statistics`` counts voxels and slices (along the last axis) of the truth (TransSeg, table 3).
    """

    def __init__(self, classes: Sequence[int] | None = None, per_class: bool = False) -> None:
        super().__init__()
        self.per_class = per_class
        self.classes = None if classes is None else list(classes)

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        assert y is not None
        y_pred, y = (plain_tensor(mask) for mask in (y_pred, y))
        both, predicted, true = (count_voxels(mask.flatten(2)) for mask in (y_pred * y, y_pred, y))
        return torch.stack((both, predicted + true, true, *_slices(y)), dim=2)

    def aggregate(self) -> torch.Tensor:
        """Mean Dice of the classes, a scalar; with `per_class` the Dice of each."""
        dice = self._dice()
        return dice if self.per_class else dice.nanmean()

    def by_class(self) -> dict[int, float]:
        """Dice of each class by its channel; NaN for a class that occurs nowhere."""
        dice = self._dice().tolist()
        return dict(zip(self.classes or range(1, len(dice) + 1), dice, strict=True))

    def statistics(self) -> dict[int, dict[str, float]]:
        """Of each class by its channel: voxels and slices of the truth that have it, and the mean Dice of the truth in
        two slices one beside the other of which one or both have it (``slice_dice``, NaN where there are none)."""
        _, _, voxels, slices, overlap, pairs = self._counts().unbind(1)
        columns = zip(voxels.tolist(), slices.tolist(), (overlap / pairs).tolist(), strict=True)
        found = [{"voxels": int(v), "slices": int(s), "slice_dice": d} for v, s, d in columns]
        return dict(zip(self.classes or range(1, len(found) + 1), found, strict=True))

    def _counts(self) -> torch.Tensor:
        counts: Any = self.get_buffer()
        return counts.sum(0)[slice(1, None) if self.classes is None else self.classes]

    def _dice(self) -> torch.Tensor:
        both, sizes = self._counts()[:, :2].unbind(1)
        return 2 * both / sizes  # 0 / 0, NaN, where a class is nowhere


def _slices(y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For each volume and class (B, C): number of its slices, sum of Dice of neighbouring slices, and their number."""
    lines = y.flatten(2, -2) if y.ndim > 3 else y[:, :, None]
    sizes = count_voxels(lines)
    shared = count_voxels(lines[..., 1:] * lines[..., :-1])
    either = sizes[..., 1:] + sizes[..., :-1]
    overlap = torch.where(either > 0, 2 * shared / either.clamp_min(1), 0.0).sum(2)
    return (sizes > 0).sum(2).double(), overlap, (either > 0).sum(2).double()
