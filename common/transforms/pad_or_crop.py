from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import ResizeWithPadOrCropd

from ..volumes import volume_name

__all__ = ["PadOrCropd"]

logger = logging.getLogger(__name__)


class PadOrCropd(ResizeWithPadOrCropd):
    """MONAI's `ResizeWithPadOrCropd` that warns when it cuts off foreground of an image or mask.

    It serves nets that identify a slice by its number: registered images keep their place on a canvas of fixed size.

    Args:
        keys: images and masks; the voxels of each that are neither 0 nor ``value`` are counted.
        spatial_size: of the canvas.
        value: of voxels that are added, such as -1 in label images, which does not count.
        share: share of these voxels that may be lost without a warning.
        kwargs: those of `monai.transforms.ResizeWithPadOrCropd`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spatial_size: Sequence[int] | int,
        value: float = 0,
        share: float = 0.001,
        **kwargs: Any,
    ) -> None:
        super().__init__(keys, spatial_size, value=value, **kwargs)
        self.value, self.share = value, share

    def __call__(self, data: Mapping[Hashable, torch.Tensor], lazy: bool | None = None) -> dict[Hashable, torch.Tensor]:
        result = super().__call__(data, lazy)
        for key in self.key_iterator(dict(data)):
            before, after = (int(((d[key] != 0) & (d[key] != self.value)).sum()) for d in (data, result))
            if before - after > self.share * before:
                logger.warning(
                    "%s: %.1f %% of its voxels that are not 0 lie outside of the canvas %s and are cut off; register "
                    "the images, or set roi_size to more.",
                    volume_name(data[key], key),
                    100 * (before - after) / before,
                    list(result[key].shape[1:]),
                )
        return result
