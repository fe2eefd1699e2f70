from __future__ import annotations

import math

import torch
from monai.metrics import CumulativeIterationMetric

__all__ = ["CalibrationSlope"]


class CalibrationSlope(CumulativeIterationMetric):
    """Slope of the least-squares line of true on predicted numbers; 1 is calibrated (Cox, Biometrika 1958).

    Below 1 the predictions spread too far: a predicted difference of a year stands for less than a year. Above 1 they
    spread too little. The value is NaN if all predictions are equal. Takes (B, 1) and (B, 1); the value covers all
    samples since the last ``reset``.
    """

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        return y_pred.reshape(len(y_pred)), y.reshape(len(y))

    def aggregate(self) -> float:
        predicted, true = (buffer.double() for buffer in self.get_buffer())
        predicted, true = predicted - predicted.mean(), true - true.mean()
        spread = float(predicted.square().sum())
        return float((predicted * true).sum()) / spread if spread > 0 else math.nan
