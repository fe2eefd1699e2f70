from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ..precision import without_autocast

__all__ = ["RestorationLoss"]


class RestorationLoss(nn.Module):
    """Mean squared error of a restored image, in float32 under autocast.

    Args:
        masked_only: whether only damaged voxels count, as in a masked autoencoder (He et al., CVPR 2022). Otherwise all
            voxels count, as in Models Genesis (Zhou et al., MICCAI 2019).

    ``forward(prediction, image)`` reads ``reconstruction`` and ``target`` (B, C, *spatial) and ``mask`` (B, *spatial)
    and returns a scalar.
    """

    def __init__(self, masked_only: bool = True) -> None:
        super().__init__()
        self.masked_only = masked_only

    def forward(self, prediction: Mapping[str, torch.Tensor], image: torch.Tensor | None = None) -> torch.Tensor:
        with without_autocast(prediction["target"].device):
            error = (prediction["reconstruction"].float() - prediction["target"].float()).square()
            if not self.masked_only:
                return error.mean()
            mask = prediction["mask"][:, None]
            return (error * mask).sum() / (mask.sum() * error.shape[1]).clamp(min=1)
