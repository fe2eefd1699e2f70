from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.metrics import CumulativeIterationMetric

from .empty_masks import Empty, check_empty, mean_of_cases, score_empty

__all__ = ["ClassDice"]


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
