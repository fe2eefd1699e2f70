"""One rule for empty masks, shared by scores of overlap and of distance.

For a structure in one volume:

- in the truth only (missed) or in the prediction only (invented): the worst score. Dice and NSD are 0; a distance is
  the length of the image's diagonal. Infinity would spoil the mean, and leaving it out would reward the mistake.
- in neither: by `empty`. `leave_out`, the default, gives NaN, which the mean leaves out: there is nothing to find, and
  a score of 1 or 0 mm would reward a net for structures that scans lack. `perfect` gives the best score, as in some
  challenges: Dice and NSD 1, a distance of 0.

``ClassDice``, ``HD95``, ``NSD`` and ``python -m common.score`` follow it. MONAI's Dice differs: it leaves out an
invented structure. MONAI's mean of no values is 0, the worst Dice and the best distance; here it is NaN.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from monai.metrics import CumulativeIterationMetric

__all__ = ["Empty", "MeanOfCases", "check_empty", "occurs", "score_empty"]

Empty = Literal["leave_out", "perfect"]


def check_empty(empty: Any, where: str) -> Empty:
    """Return the rule's name if it is known.

    Raises:
        ValueError: the rule is unknown; the sentence begins with `where`.
    """
    if empty not in get_args(Empty):
        raise ValueError(f"{where} has the rules empty='leave_out' and 'perfect', not {empty!r}: give one of these.")
    return empty


def occurs(mask: torch.Tensor) -> torch.Tensor:
    """Which classes one-hot masks (B, C, *spatial) have, booleans (B, C)."""
    return mask.flatten(2).any(-1)


def score_empty(
    score: torch.Tensor, predicted: torch.Tensor, true: torch.Tensor, worst: Any, best: float, empty: Empty
) -> torch.Tensor:
    """Scores (B, C) with this module's rule where masks are empty.

    Args:
        score: computed scores; kept where neither mask is empty.
        predicted: which classes are predicted, booleans (B, C).
        true: which classes the truth has.
        worst: score of a missed or invented structure.
        best: score of a structure in neither mask, if `empty` is `perfect`.
        empty: rule for a structure in neither mask.
    """
    predicted, true = predicted.to(score.device), true.to(score.device)
    score = torch.where(predicted ^ true, torch.full_like(score, worst), score)
    neither = best if empty == "perfect" else math.nan
    return torch.where(predicted | true, score, torch.full_like(score, neither))


class MeanOfCases(CumulativeIterationMetric):
    """A metric whose scores (B, C) are NaN where a class does not count in a case."""

    def aggregate(self, reduction: Any = None) -> torch.Tensor:
        """Mean over cases of the mean over counting classes, a scalar; NaN if no class counts in any case.

        ``reduction``, an argument of MONAI's metrics, changes nothing.
        """
        scores: Any = self.get_buffer()
        return scores.nanmean(1).nanmean()
