from __future__ import annotations

import logging
import math
from itertools import combinations

import numpy as np
import torch
from monai.metrics import CumulativeIterationMetric
from sklearn.metrics import roc_auc_score

__all__ = ["HandTillAUC"]

logger = logging.getLogger(__name__)


class HandTillAUC(CumulativeIterationMetric):
    """Area under the ROC curve for several classes: M of Hand and Till (Machine Learning 45, 2001, equation 7).

    For each pair of classes, the probability of either class separates the two with some area. This is the mean of
    these areas over pairs. It depends neither on class frequencies nor on a threshold; for two classes it is the usual
    area. Classes that the truth lacks are left out, which is logged. With fewer than two classes it is NaN.

    Takes probabilities (B, K), or any strictly increasing transform of them per class, and class numbers (B,) or (B,
    1). The value covers all samples since the last ``reset``.
    """

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        return y_pred, y.reshape(len(y))

    def aggregate(self) -> float:
        scores, truth = (buffer.float().cpu().numpy() for buffer in self.get_buffer())  # bfloat16 is unknown to numpy
        there = np.unique(truth.astype(int))
        if len(there) < scores.shape[1]:
            logger.warning(
                "the truth has %d of %d classes; the area under the ROC curve covers only these.",
                len(there),
                scores.shape[1],
            )
        areas = []
        for pair in combinations(there, 2):
            rows = np.isin(truth, pair)
            areas += [roc_auc_score(truth[rows] == name, scores[rows, name]) for name in pair]
        return float(np.mean(areas)) if areas else math.nan
