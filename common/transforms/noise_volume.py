from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.transforms import Transform

__all__ = ["NoiseVolume"]


class NoiseVolume(Transform):
    """Give an item without an image one of Gaussian noise, for pretexts that draw the network's input themselves.

    Handlers that watch the images of a batch (``common.handlers.RepresentationMonitor``) then work, too.

    Args:
        size: voxels per axis.
        channels: of the image.

    ``volume(item)`` returns the item with ``image`` (channels, *size); the item's ``number`` seeds it.
    """

    def __init__(self, size: Sequence[int], channels: int = 1) -> None:
        self.shape = (channels, *size)

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(data["number"])
        return {**data, "image": torch.randn(self.shape, generator=generator)}
