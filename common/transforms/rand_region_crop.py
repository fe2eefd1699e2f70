from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable, SpatialCrop, generate_spatial_bounding_box

from ..volumes import volume_name


class RandRegionCropd(Randomizable, MapTransform):
    """Crop to the box around the label's foreground, with each of its six sides moved outwards at random.

    A second stage trained on the true box so gets used to the box of a first stage, which differs from it (Chen et al.,
    arXiv 1904.00625, section 3.3: "random expansion"). An unequal expansion moves the region within the crop.

    Args:
        keys: images and labels, channel first, on one grid.
        label_key: label image; its voxels above 0 are the region. If it has none, nothing is cropped.
        expansion: least and largest expansion of a side in voxels.
        allow_missing_keys: whether items may lack keys.

    Raises:
        ValueError: the expansion is negative, its least is above its largest, or an item has no such label.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_key: str = "label",
        expansion: Sequence[int] = (0, 16),
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        low, high = (int(value) for value in expansion)
        if not 0 <= low <= high:
            raise ValueError(
                f"The expansion of a region must be a least and a largest number of voxels, not {expansion}."
            )
        self.label_key, self.expansion = label_key, (low, high)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        if self.label_key not in d:
            raise ValueError(f"The item has no {self.label_key!r} to crop to, only {sorted(map(str, d))}.")
        start, end = generate_spatial_bounding_box(torch.as_tensor(d[self.label_key])[:1])
        low, high = self.expansion
        draws = self.R.randint(low, high + 1, size=(2, 3))
        if not any(end):  # no foreground
            return d
        crop = SpatialCrop(
            roi_start=[max(0, value - int(draw)) for value, draw in zip(start, draws[0], strict=True)],
            roi_end=[value + int(draw) for value, draw in zip(end, draws[1], strict=True)],
        )
        for key in self.key_iterator(d):
            if d[key].shape[1:] != d[self.label_key].shape[1:]:
                raise ValueError(
                    f"{volume_name(d[key], key)} is not on the grid of its label, so it cannot be cropped to it; "
                    "give both one grid."
                )
            d[key] = crop(d[key])
        return d
