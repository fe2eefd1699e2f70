from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["MaskedVectorsLoss"]


class MaskedVectorsLoss(nn.Module):
    """Mean squared error of predicted encoding vectors of masked slices, summed over planes (Jun et al., Medical
    Transformer, section 3.3.1).

    ``forward(prediction, image)`` takes what ``MaskedEncodingVectors`` returns: ``prediction`` and ``target``
    (B, M, d) of the masked slices of all planes, and ``weight`` (M,), one over the number of masked slices of a
    slice's plane. It returns a scalar, in float32: the sum over the planes of their mean squared errors.
    """

    shared = ("weight",)
    """What is no part of the batch, for ``WholeBatchLoss``."""

    def forward(self, prediction: dict[str, torch.Tensor], image: Any = None) -> torch.Tensor:
        error = (prediction["prediction"].float() - prediction["target"].float()).square().mean(dim=(0, 2))
        return (error * prediction["weight"]).sum()
