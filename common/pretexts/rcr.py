from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..transforms import CutoutSwap, rot90_batch

__all__ = ["RCR"]


class RCR(nn.Module):
    """Rotation, contrast and reconstruction [1], the pretext that [2] uses for Swin UNETR.

    Two views of each image are rotated by quarter turns in a plane, each by its own angle, and damaged by cut-out
    (boxes of noise, boxes swapped between samples). Both views pass the encoder in one batch. In its deepest map, token
    0 predicts the rotation and token 1 is the contrastive vector; a convolutional decoder restores the undamaged view
    from the whole map.

    Args:
        encoder: any encoder; its deepest map needs at least two tokens, and a stride that is a power of two on each
            axis.
        contrast_size: length of the contrastive vector.
        max_cutout: upper bound of the share of voxels that each cut-out pass replaces.
        axes: the two axes of the rotation plane, as negative numbers.

    ``forward(image (B, C, D, H, W))``, of equal size along ``axes``, returns for the 2B views ``rotation_logits``
    (2B, 4), ``rotation`` (2B,), ``contrast1`` and ``contrast2`` (B, contrast_size), ``reconstruction``,
    ``target`` and ``damaged``, which the encoder saw, (2B, C, D, H, W).

    Raises:
        ValueError: a stride is not a power of two, or ``axes`` are not two; in ``forward``, the sizes along ``axes``
            differ or the deepest map has a single token.

    References:
        - [1] Tang et al., Self-Supervised Pre-Training of Swin Transformers for 3D Medical Image Analysis, CVPR 2022.
        - [2] Zhang et al., Pretrain Once and Finetune Many Times, BIBM 2023, section III-A.
    """

    def __init__(
        self, encoder: Any, contrast_size: int = 512, max_cutout: float = 0.3, axes: Sequence[int] = (-2, -1)
    ) -> None:
        super().__init__()
        channels, stride = encoder.channels[-1], encoder.strides[-1]
        doublings = [round(math.log2(size)) for size in stride]
        if any(size != 2**number for size, number in zip(stride, doublings, strict=True)):
            raise ValueError(
                f"RCR needs a deepest stride that is a power of two on each axis, but the encoder has {stride}."
            )
        if len(axes) != 2:
            raise ValueError(f"RCR turns one plane, so it needs two axes, not {list(axes)}.")
        self.encoder = encoder
        self.axes = (axes[0], axes[1])
        self.cutout = CutoutSwap(max_share=max_cutout)
        self.rotation_head = nn.Linear(channels, 4)
        self.contrast_head = nn.Linear(channels, contrast_size)
        layers: list[nn.Module] = []
        for step in range(max(doublings)):
            factor = tuple(2.0 if step < number else 1.0 for number in doublings)
            # Halve the channels down to a sixteenth, then keep them: 768, 384, 192, 96, 48, 48 for Swin UNETR.
            wide, narrow = channels // 2 ** min(step, 4), channels // 2 ** min(step + 1, 4)
            layers += [
                nn.Conv3d(wide, narrow, 3, padding=1),
                nn.InstanceNorm3d(narrow),
                nn.LeakyReLU(),
                nn.Upsample(scale_factor=factor, mode="trilinear"),
            ]
        self.decoder = nn.Sequential(*layers, nn.Conv3d(narrow, encoder.in_channels, 1))

    def heads(self, views: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rotation logits (N, 4), contrastive vectors (N, contrast_size) and reconstruction of N views."""
        deepest = self.encoder(views)[-1]
        tokens = deepest.flatten(2).transpose(1, 2)
        if tokens.shape[1] < 2:
            raise ValueError(
                f"images of {tuple(views.shape[2:])} voxels give a single token; RCR reads two, so set roi_size "
                "to at least 64 on one axis."
            )
        return self.rotation_head(tokens[:, 0]), self.contrast_head(tokens[:, 1]), self.decoder(deepest)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        if image.shape[self.axes[0]] != image.shape[self.axes[1]]:
            raise ValueError(
                f"RCR rotates the plane of axes {self.axes}, but crops of {tuple(image.shape[2:])} voxels differ "
                "along them: set roi_size to equal sizes there."
            )
        image = torch.cat((image, image))
        rotation = torch.randint(4, (len(image),), device=image.device)
        target = rot90_batch(image, rotation, self.axes)
        # Swap partners come from the same view, so that no view sees its own other half.
        damaged = torch.cat([self.cutout(view) for view in target.chunk(2)])
        logits, contrast, reconstruction = self.heads(damaged)
        contrast1, contrast2 = contrast.chunk(2)
        return {
            "rotation_logits": logits,
            "rotation": rotation,
            "contrast1": contrast1,
            "contrast2": contrast2,
            "reconstruction": reconstruction,
            "target": target,
            "damaged": damaged,
        }

    def pictures(
        self, image: torch.Tensor, prediction: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Target, input and reconstruction (2B, C, D, H, W): the turned views, the damaged views, the restored views.

        ``prediction`` is what ``forward`` returned for this image.
        """
        return prediction["target"], prediction["damaged"], prediction["reconstruction"]
