from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import ResizeWithPadOrCropd

from ..volumes import volume_name

__all__ = ["Canvasd"]

logger = logging.getLogger(__name__)


class Canvasd(ResizeWithPadOrCropd):
    """MONAI's `ResizeWithPadOrCropd` that says when it cuts off a part of the image that is not background.

    For nets that know a slice by its number: registered images keep their place on a canvas of fixed size.

    Args:
        keys: image, and what lies on its grid.
        spatial_size: of the canvas.
        source_key: image whose voxels other than 0 are counted; by default the first key.
        share: of these voxels that may be lost without a warning.
        kwargs: those of `monai.transforms.ResizeWithPadOrCropd`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spatial_size: Sequence[int] | int,
        source_key: Hashable | None = None,
        share: float = 0.001,
        **kwargs: Any,
    ) -> None:
        super().__init__(keys, spatial_size, **kwargs)
        self.source_key = self.keys[0] if source_key is None else source_key
        self.share = share

    def __call__(self, data: Mapping[Hashable, torch.Tensor], lazy: bool | None = None) -> dict[Hashable, torch.Tensor]:
        result = super().__call__(data, lazy)
        if self.source_key in data:
            before, after = (int((d[self.source_key] != 0).sum()) for d in (data, result))
            if before - after > self.share * before:
                logger.warning(
                    "%s: %.1f %% of its voxels that are not 0 lie outside of the canvas %s and are cut off; register "
                    "the images, or set roi_size to more.",
                    volume_name(data[self.source_key], self.source_key),
                    100 * (before - after) / before,
                    list(result[self.source_key].shape[1:]),
                )
        return result
