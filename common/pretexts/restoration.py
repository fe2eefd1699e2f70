from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ..volumes import format_shape

__all__ = ["Restoration"]


class Restoration(nn.Module):
    """A dense network that restores damaged images: masked autoencoders for U-Nets, Models Genesis.

    The whole network is trained, decoder included (Wald et al., "Revisiting MAE Pre-Training for 3D Medical Image
    Segmentation", CVPR 2025; Zhou et al., "Models Genesis", MICCAI 2019).

    Args:
        network: a segmentation network with as many output channels as the image has.
        damage: takes a batch and returns the damaged images and a mask of damaged voxels, like
            ``common.transforms.CellMask`` or ``GenesisDamage``.

    ``forward(image (B, C, *spatial))`` returns ``reconstruction``, ``target`` and the network's input ``masked`` (B, C,
    *spatial), and ``mask`` (B, *spatial).

    Raises:
        ValueError: when called: the network's output has another number of channels or another size than the image.
    """

    def __init__(self, network: nn.Module, damage: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]) -> None:
        super().__init__()
        self.network, self.damage = network, damage

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        damaged, mask = self.damage(image)
        made = self.network(damaged)
        made = made[0] if isinstance(made, list | tuple) else made  # deep supervision: the finest
        if made.shape[2:] != image.shape[2:]:
            raise ValueError(
                f"The network returns {format_shape(made.shape[2:])} voxels for images of "
                f"{format_shape(image.shape[2:])}: set roi_size to multiples of its strides, or take a network that "
                "returns the image's size."
            )
        if made.shape != image.shape:
            raise ValueError(
                f"The network returns {made.shape[1]} channels for images with {image.shape[1]}: set num_classes to "
                "in_channels in pre-training."
            )
        return {"reconstruction": made, "target": image, "masked": damaged, "mask": mask}

    def pictures(
        self, image: torch.Tensor, prediction: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Target, input and reconstruction (B, C, *spatial); ``prediction`` is what ``forward`` returned."""
        return prediction["target"], prediction["masked"], prediction["reconstruction"].to(image.dtype)
