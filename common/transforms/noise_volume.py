from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.transforms import Transform

__all__ = ["NoiseVolume"]


class NoiseVolume(Transform):
    """An image of Gaussian noise for an item without one, for pretexts that draw what the network sees themselves.

    What watches the images of a batch (``common.handlers.RepresentationMonitor``) has some then, too.

    Args:
        size: voxels an axis.
        channels: of the image.

    ``volume(item)`` returns the item with ``image`` (channels, *size), which its ``number`` decides.
    """

    def __init__(self, size: Sequence[int], channels: int = 1) -> None:
        self.shape = (channels, *size)

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(data["number"])
        return {**data, "image": torch.randn(self.shape, generator=generator)}
