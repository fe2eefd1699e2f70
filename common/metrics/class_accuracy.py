from __future__ import annotations

import torch
from monai.metrics import CumulativeIterationMetric

__all__ = ["ClassAccuracy"]


class ClassAccuracy(CumulativeIterationMetric):
    """Share of samples with the largest of K scores at their class; the 0 or 1 of each sample is kept as a detail.

    Takes scores (B, K) and class numbers (B,) or (B, 1); the value covers all samples since the last ``reset``.
    """

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return (y_pred.argmax(dim=1) == y.reshape(len(y))).float()[:, None]

    def aggregate(self) -> float:
        return float(torch.as_tensor(self.get_buffer()).mean())
