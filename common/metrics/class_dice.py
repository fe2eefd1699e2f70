from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.metrics import DiceMetric

__all__ = ["ClassDice"]


class ClassDice(DiceMetric):
    """MONAI's Dice of each volume, of some classes only, such as the 8 of BTCV's 13 organs that papers report.

    Args:
        classes: their channels; None for all but the background.
        **kwargs: of ``monai.metrics.DiceMetric``.

    Takes one-hot prediction and truth (B, C, *spatial), returns (B, len(classes)) per batch; a class that the truth
    lacks is left out (NaN) of the mean.
    """

    def __init__(self, classes: Sequence[int] | None = None, **kwargs: Any) -> None:
        super().__init__(include_background=True, **kwargs)
        self.classes = None if classes is None else list(classes)

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        chosen: Any = slice(1, None) if self.classes is None else self.classes
        return super()._compute_tensor(y_pred[:, chosen], y[:, chosen])
