"""Losses of pretexts that predict masked voxels, patches or vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..precision import without_autocast

__all__ = ["MaskedL1Loss", "MaskedReconstructionLoss", "MaskedVectorsLoss"]


class MaskedL1Loss(nn.Module):
    """Mean absolute error over masked voxels (Xie et al., SimMIM, CVPR 2022, section 3.4).

    ``forward(prediction, image)`` reads ``reconstruction`` and ``target`` (B, C, D, H, W) and ``mask`` (B, D, H, W),
    true where the encoder did not see the voxel, and returns a scalar; ``image`` is there because MONAI's trainer
    passes it.
    """

    def forward(self, prediction: dict[str, torch.Tensor], image: torch.Tensor | None = None) -> torch.Tensor:
        with without_autocast(prediction["target"].device):
            error = (prediction["reconstruction"].float() - prediction["target"].float()).abs()
            mask = prediction["mask"][:, None]
            # A sum of products instead of an index: no wait for the device to count the masked voxels.
            return (error * mask).sum() / (mask.sum() * error.shape[1]).clamp(min=1)


class MaskedReconstructionLoss(nn.Module):
    """Mean squared error over masked patches (He et al., CVPR 2022; Zhang et al., BIBM 2023, section III-A).

    ``forward(prediction, image)`` reads ``patches`` and ``target`` (B, M, P) of the prediction and returns a scalar:
    the mean within each patch, averaged over patches. ``image`` is there because MONAI's trainer passes it.
    """

    def forward(self, prediction: dict[str, torch.Tensor], image: torch.Tensor | None = None) -> torch.Tensor:
        with without_autocast(prediction["patches"].device):
            return nn.functional.mse_loss(prediction["patches"].float(), prediction["target"].float())


class MaskedVectorsLoss(nn.Module):
    """Mean squared error of predicted encoding vectors of masked slices, summed over planes (Jun et al., Medical
    Transformer, section 3.3.1).

    ``forward(prediction, image)`` takes what ``MaskedEncodingVectors`` returns: ``prediction`` and ``target`` (B, M, d)
    of the masked slices of all planes, and ``weight`` (M,), the inverse of the number of masked slices in the slice's
    plane. It returns a scalar in float32: the mean squared error of each plane, summed over planes.
    """

    shared = ("weight",)
    """Parts of the prediction without a batch axis, for ``WholeBatchLoss``."""

    def forward(self, prediction: dict[str, torch.Tensor], image: Any = None) -> torch.Tensor:
        error = (prediction["prediction"].float() - prediction["target"].float()).square().mean(dim=(0, 2))
        return (error * prediction["weight"]).sum()
