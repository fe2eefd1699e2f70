"""One rule for masks without a voxel, which scores of overlap and of distance share.

Of a structure in one volume:

- in the truth only (missed) or in the prediction only (invented): the worst score there is; Dice and NSD 0, a distance
  the length of the image's diagonal. Infinity would spoil the mean, and leaving it out would reward the mistake.
- in neither: by `empty`. `leave_out`, the default: NaN, which the mean leaves out. There is nothing to find, and 1 or
  0 mm for it would let a net gain by structures that scans lack. `perfect`: the best score, Dice and NSD 1, a distance
  of 0, as some challenges have it.

``ClassDice``, ``HD95``, ``NSD`` and ``python -m common.score`` follow it. MONAI's Dice differs for an invented one,
which it leaves out, and its mean of no value at all is 0, the worst Dice and the best distance; here it is NaN.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch

__all__ = ["Empty", "check_empty", "mean_of_cases", "score_empty"]

Empty = Literal["leave_out", "perfect"]


def check_empty(empty: Any, where: str) -> Empty:
    """The rule's name as it is.

    Raises:
        ValueError: for another one; the sentence begins with `where`.
    """
    if empty not in get_args(Empty):
        raise ValueError(f"{where} has the rules empty='leave_out' and 'perfect', not {empty!r}: give one of these.")
    return empty


def score_empty(
    score: torch.Tensor, y_pred: torch.Tensor, y: torch.Tensor, worst: Any, best: float, empty: Empty
) -> torch.Tensor:
    """Scores (B, C) of one-hot masks (B, C, *spatial) with this module's rule where masks are empty.

    Args:
        score: what was computed; kept where neither mask is empty.
        y_pred: prediction.
        y: truth.
        worst: score of a structure that is missed or invented.
        best: score of one in neither, where `empty` is `perfect`.
        empty: rule for one in neither.
    """
    predicted, true = (mask.flatten(2).any(-1).to(score.device) for mask in (y_pred, y))
    score = torch.where(predicted ^ true, torch.full_like(score, worst), score)
    neither = best if empty == "perfect" else math.nan
    return torch.where(predicted | true, score, torch.full_like(score, neither))


def mean_of_cases(scores: torch.Tensor) -> torch.Tensor:
    """Mean, over cases, of the mean over the classes that count (B, C); NaN where none counts in any."""
    return scores.nanmean(1).nanmean()
