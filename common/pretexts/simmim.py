from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..transforms import noise_mask, unpatchify

__all__ = ["SimMIM"]


class SimMIM(nn.Module):
    """Masked image modelling with a linear head [1], over any encoder, as compared in [2].

    Random cells of the image are replaced with noise, and each token of the deepest map predicts the voxels below it.
    [1] replaces embedded patches with a mask token. Here, as in [2], the voxels are replaced, since the overlapping
    stem of nnFormer would show masked voxels to their neighbours.

    Args:
        encoder: any encoder.
        mask_ratio: share of the cells that are masked: 0.6 in [1], 0.75 in [2].
        mask_size: voxels per axis of a cell.
        mask_noise: standard deviation of the noise.

    ``forward(image (B, C, D, H, W))`` returns ``reconstruction``, ``target`` and the encoder's input ``masked`` (B, C,
    D, H, W), and ``mask`` (B, D, H, W).

    Raises:
        ValueError: ``mask_ratio`` is not between 0 and 1; in ``forward``, an image is smaller than ``mask_size``.

    References:
        - [1] Xie et al., SimMIM: A Simple Framework for Masked Image Modeling, CVPR 2022, section 3.
        - [2] Hu et al., Enhancing 3D Transformer Segmentation Model for Medical Image with Token-level Representation
          Learning, section 4.3.
    """

    def __init__(
        self, encoder: Any, mask_ratio: float = 0.75, mask_size: Sequence[int] = (4, 8, 8), mask_noise: float = 0.1
    ) -> None:
        super().__init__()
        if not 0 < mask_ratio < 1:
            raise ValueError(f"mask_ratio must be between 0 and 1, not {mask_ratio}.")
        self.encoder = encoder
        self.mask_ratio, self.mask_size, self.mask_noise = mask_ratio, tuple(mask_size), mask_noise
        self.stride = tuple(encoder.strides[-1])
        self.head = nn.Linear(encoder.channels[-1], math.prod(self.stride) * encoder.in_channels)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        masked, mask = noise_mask(image, self.mask_ratio, self.mask_size, self.mask_noise)
        deepest = self.encoder(masked)[-1]
        patches = self.head(deepest.flatten(2).transpose(1, 2))
        reconstruction = unpatchify(patches, deepest.shape[2:], self.stride)
        # An encoder that continues images to a multiple of its stride has tokens of what lies beyond.
        for axis, size in enumerate(image.shape[2:], start=2):
            reconstruction = reconstruction.narrow(axis, 0, size)
        return {"reconstruction": reconstruction, "target": image, "masked": masked, "mask": mask}

    def pictures(
        self, image: torch.Tensor, prediction: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Target, input and reconstruction (B, C, D, H, W); unmasked voxels of the last are those of the target.

        ``prediction`` is what ``forward`` returned for this image.
        """
        target, reconstruction = prediction["target"], prediction["reconstruction"]
        filled = torch.where(prediction["mask"][:, None], reconstruction.to(target.dtype), target)
        return target, prediction["masked"], filled
