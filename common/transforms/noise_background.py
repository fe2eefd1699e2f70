from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any
from zlib import crc32

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type

from ..volumes import volume_name


class NoiseBackgroundd(MapTransform):
    """Scale by mean and standard deviation of the voxels above 0, and fill voxels of 0 with standard normal noise.

    MedicalNet's published code prepares images like this (``datasets/brains18.py``). Its paper scales by the whole
    volume and leaves the background unchanged. The published code draws the noise anew whenever it loads an image, in
    tests as well. Here the image's voxels are the seed, so a scan is prepared alike wherever it stands.

    Args:
        keys: images of any shape.
        allow_missing_keys: whether items may lack keys.

    Raises:
        ValueError: all voxels of an image above 0 are equal, or there are none.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            image = torch.as_tensor(d[key]).float()
            inside = image[image > 0]
            if len(inside) == 0 or not inside.std(correction=0) > 0:
                raise ValueError(f"{volume_name(d[key], key)} has no two different voxels above 0 to scale it by.")
            seed = crc32(np.ascontiguousarray(image.cpu()).tobytes())
            noise = torch.from_numpy(np.random.default_rng(seed).normal(size=tuple(image.shape))).to(image)
            scaled = (image - inside.mean()) / inside.std(correction=0)
            d[key] = convert_to_dst_type(torch.where(image == 0, noise, scaled), d[key], dtype=torch.float32)[0]
        return d
