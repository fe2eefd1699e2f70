"""Dice by volume, and of all volumes taken for one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.metrics import CumulativeIterationMetric

from .empty_masks import Empty, check_empty, mean_of_cases, score_empty

__all__ = ["ClassDice", "PooledDice"]


class ClassDice(CumulativeIterationMetric):
    """Dice of each volume and class, with the rule for empty masks that ``HD95`` follows too.

    A class that is missed or invented scores 0. MONAI's ``MeanDice`` leaves out the invented one, so that false
    positives in a scan without the structure cost nothing (``empty_masks.py`` says more).

    Args:
        classes: channels, such as those of the 8 of BTCV's 13 organs that papers report; None for all.
        include_background: whether channel 0 counts where `classes` is None.
        empty: what a class in neither mask scores: `leave_out` of the mean (NaN), or `perfect`, 1.

    Takes one-hot prediction and truth (B, C, *spatial), returns (B, classes) per batch. ``aggregate`` is the mean,
    over volumes, of a volume's mean over classes; NaN where no class counts in any volume.

    Raises:
        ValueError: for another rule.
    """

    def __init__(
        self, classes: Sequence[int] | None = None, include_background: bool = False, empty: Empty = "leave_out"
    ) -> None:
        super().__init__()
        self.empty = check_empty(empty, "ClassDice")
        self.chosen: Any = slice(0 if include_background else 1, None) if classes is None else list(classes)

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        assert y is not None
        y_pred, y = (mask.as_tensor() if isinstance(mask, MetaTensor) else mask for mask in (y_pred, y))
        y_pred, y = y_pred[:, self.chosen].flatten(2), y[:, self.chosen].flatten(2)
        both = (y_pred * y).sum(2, dtype=torch.float64)
        sizes = y_pred.sum(2, dtype=torch.float64) + y.sum(2, dtype=torch.float64)
        return score_empty(2 * both / sizes, y_pred, y, 0.0, 1.0, self.empty).float()

    def aggregate(self) -> torch.Tensor:
        """The mean, a scalar."""
        scores: Any = self.get_buffer()
        return mean_of_cases(scores)


class PooledDice(CumulativeIterationMetric):
    """Dice of all volumes taken for one: intersections and sizes are added up before they are divided.

    The metric of TransSeg's published code (``eval_metrics``), which weighs volumes by the size of a structure and can
    be far from the mean of the volumes' Dice. There it is taken on each GPU, and the GPUs' values are averaged; here it
    is of all.

    Args:
        classes: channels whose Dice is averaged; None for all but the background. A class that is neither predicted nor
            true anywhere is left out; one that is missed everywhere, or only predicted, counts 0.
        per_class: give the Dice of each class in place of their mean, NaN for one that is nowhere.

    Takes one-hot prediction and truth (B, C, *spatial); ``aggregate`` returns a scalar, or (classes,) with `per_class`.
    ``statistics`` counts what the truth holds, along the last axis as slices (TransSeg, table 3).
    """

    def __init__(self, classes: Sequence[int] | None = None, per_class: bool = False) -> None:
        super().__init__()
        self.per_class = per_class
        self.classes = None if classes is None else list(classes)

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        assert y is not None
        y_pred, y = (mask.as_tensor() if isinstance(mask, MetaTensor) else mask for mask in (y_pred, y))
        both, predicted, true = (mask.flatten(2).sum(2, dtype=torch.float64) for mask in (y_pred * y, y_pred, y))
        return torch.stack((both, predicted + true, true, *_slices(y)), dim=2)

    def aggregate(self) -> torch.Tensor:
        """Mean Dice of the classes, a scalar; with `per_class` that of each."""
        dice = self._dice()
        return dice if self.per_class else dice.nanmean()

    def by_class(self) -> dict[int, float]:
        """Dice of each class by its channel, NaN for one that is nowhere."""
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
    """Of each volume and class (B, C): slices that have it, and Dice of neighbouring slices, added up, of how many."""
    lines = y.flatten(2, -2) if y.ndim > 3 else y[:, :, None]
    sizes = lines.sum(2, dtype=torch.float64)
    shared = (lines[..., 1:] * lines[..., :-1]).sum(2, dtype=torch.float64)
    either = sizes[..., 1:] + sizes[..., :-1]
    overlap = torch.where(either > 0, 2 * shared / either.clamp_min(1), 0.0).sum(2)
    return (sizes > 0).sum(2).double(), overlap, (either > 0).sum(2).double()
