"""One rule for masks without a voxel, which scores of overlap and of distance share.

Of a structure in one volume:

- in neither the truth nor the prediction: NaN, left out of the mean. There is nothing to find, and 1 or 0 mm for it
  would let a net gain by structures that scans lack.
- in the truth only (missed) or in the prediction only (invented): the worst score there is; Dice and NSD 0, a distance
  the length of the image's diagonal. Infinity would spoil the mean, and leaving it out would reward the mistake.

``HD95`` and ``python -m common.score`` always follow it, ``ClassDice`` with ``empty="leave_out"``. MONAI's Dice
differs for an invented structure, which it leaves out.
"""

from __future__ import annotations

import math

import torch

__all__ = ["score_empty"]


def score_empty(score: torch.Tensor, y_pred: torch.Tensor, y: torch.Tensor, worst: float) -> torch.Tensor:
    """Scores (B, C) of one-hot masks (B, C, *spatial) with this module's rule where masks are empty.

    Args:
        score: what was computed; kept where neither mask is empty.
        y_pred: prediction.
        y: truth.
        worst: score of a structure that is missed or invented.
    """
    predicted, true = (mask.flatten(2).any(-1).to(score.device) for mask in (y_pred, y))
    score = torch.where(predicted ^ true, torch.full_like(score, worst), score)
    return torch.where(predicted | true, score, torch.full_like(score, math.nan))
