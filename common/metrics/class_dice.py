from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from monai.metrics import DiceMetric

from .empty_masks import score_empty

__all__ = ["ClassDice"]


class ClassDice(DiceMetric):
    """MONAI's Dice of each volume, of some classes only, such as the 8 of BTCV's 13 organs that papers report.

    Args:
        classes: their channels; None for all but the background.
        empty: what a class that the truth lacks scores. None: as MONAI's ``ignore_empty``, by default left out (NaN) of
            the mean, also where it was predicted. `leave_out`: left out where it was not predicted either, 0 where it
            was, the rule that ``HD95`` follows too (``empty_masks.py`` says why).
        **kwargs: of ``monai.metrics.DiceMetric``.

    Takes one-hot prediction and truth (B, C, *spatial), returns (B, len(classes)) per batch.

    Raises:
        ValueError: for another rule, or one beside ``ignore_empty``.
    """

    def __init__(
        self, classes: Sequence[int] | None = None, empty: Literal["leave_out"] | None = None, **kwargs: Any
    ) -> None:
        if empty not in (None, "leave_out"):
            raise ValueError(f"ClassDice has the rule empty='leave_out' or None, not {empty!r}: give one of these.")
        if empty is not None and "ignore_empty" in kwargs:
            raise ValueError(f"empty={empty!r} and ignore_empty are two rules for empty masks: give ClassDice one.")
        super().__init__(include_background=True, **kwargs)
        self.empty = empty
        self.classes = None if classes is None else list(classes)

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        chosen: Any = slice(1, None) if self.classes is None else self.classes
        y_pred, y = y_pred[:, chosen], y[:, chosen]
        dice = super()._compute_tensor(y_pred, y)
        return dice if self.empty is None else score_empty(dice, y_pred, y, 0.0)
