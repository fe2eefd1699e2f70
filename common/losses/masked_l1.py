from __future__ import annotations

import torch
from torch import nn

__all__ = ["MaskedL1Loss"]


class MaskedL1Loss(nn.Module):
    """Mean absolute error over masked voxels (Xie et al., SimMIM, CVPR 2022, section 3.4).

    ``forward(prediction, image)`` reads ``reconstruction`` and ``target`` (B, C, D, H, W) and ``mask`` (B, D, H, W),
    true where the encoder did not see the voxel, and returns a scalar; ``image`` is there because MONAI's trainer
    passes it.
    """

    def forward(self, prediction: dict[str, torch.Tensor], image: torch.Tensor | None = None) -> torch.Tensor:
        with torch.autocast(prediction["target"].device.type, enabled=False):
            error = (prediction["reconstruction"].float() - prediction["target"].float()).abs()
            mask = prediction["mask"][:, None]
            # A sum of products instead of an index: no wait for the device to count the masked voxels.
            return (error * mask).sum() / (mask.sum() * error.shape[1]).clamp(min=1)
