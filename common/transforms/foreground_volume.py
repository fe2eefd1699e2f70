from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.transforms import MapTransform


class ForegroundVolumed(MapTransform):
    """Turn a label image into the volume of its foreground in millilitres, a number to classify by.

    Args:
        keys: label images with an affine, channel first.
        allow_missing_keys: whether items may lack keys.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            voxel = float(abs(d[key].affine[:3, :3].det()))
            d[key] = float((d[key] > 0).sum()) * voxel / 1000
        return d
