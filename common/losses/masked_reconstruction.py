from __future__ import annotations

import torch
from torch import nn

__all__ = ["MaskedReconstructionLoss"]


class MaskedReconstructionLoss(nn.Module):
    """Mean squared error over masked patches (He et al., CVPR 2022; Zhang et al., BIBM 2023, section III-A).

    Args:
        normalise_patches: whether each target patch is standardised first (He et al.'s ``norm_pix_loss``; off in
            Zhang et al.).

    ``forward(prediction, image)`` reads ``patches`` and ``target`` (B, M, P) of the prediction and returns a scalar:
    the mean over patches of the mean over a patch. ``image`` is there because MONAI's trainer passes it.
    """

    def __init__(self, normalise_patches: bool = False) -> None:
        super().__init__()
        self.normalise_patches = normalise_patches

    def forward(self, prediction: dict[str, torch.Tensor], image: torch.Tensor | None = None) -> torch.Tensor:
        with torch.autocast(prediction["patches"].device.type, enabled=False):
            target = prediction["target"].float()
            if self.normalise_patches:
                mean, variance = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
                target = (target - mean) / (variance + 1e-6).sqrt()
            return nn.functional.mse_loss(prediction["patches"].float(), target)
