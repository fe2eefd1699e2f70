from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type

from ..volumes import format_shape, label_problem, volume_name, whole_labels


class LabelRegionsd(MapTransform):
    """Turn label images into one channel per region; a region is a union of classes, and regions may overlap.

    Use it to evaluate nested regions, or to make targets for a sigmoid. The regions of BraTS in the label scheme of the
    task `brats` are `[[3], [2, 3], [1, 2, 3]]`: enhancing tumour, tumour core and whole tumour (nnFormer and SimTROT
    evaluate them). Data type and metadata stay. Any number of regions takes one look-up per voxel.

    Args:
        keys: label images (1, *spatial) of class numbers; they become (R, *spatial) of 0 and 1 for R regions.
        regions: classes of each region; 0, the background, may be among them. None makes each class a region,
            background first, which is one-hot.
        num_classes: classes lie in `[0, num_classes)`.
        allow_missing_keys: whether items may lack keys.

    Raises:
        ValueError: there is no region, or a region is empty or names a class out of range; a label image has more than
            one channel, or values that are no classes (names the file).
    """

    def __init__(
        self,
        keys: KeysCollection,
        regions: Sequence[Sequence[int]] | None,
        num_classes: int,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.num_classes = num_classes
        if regions is None:
            regions = [[number] for number in range(num_classes)]
        if not regions or not all(regions):
            raise ValueError(
                f"`regions` is {regions!r}; it must name at least one region, each with at least one class."
            )
        outside = sorted({c for region in regions for c in region if c not in range(num_classes)})
        if outside:
            raise ValueError(
                f"`regions` names the classes {', '.join(map(str, outside))}, but with `num_classes` "
                f"{num_classes} the classes are 0 to {num_classes - 1}."
            )
        self._table = torch.zeros(len(regions), num_classes, dtype=torch.bool)
        for row, region in zip(self._table, regions, strict=True):
            row[[int(c) for c in region]] = True

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self._regions(d[key], key)
        return d

    def _regions(self, label: Any, key: Hashable) -> Any:
        # A plain tensor: indexing a MetaTensor would cost several times as much.
        values = label.as_tensor() if hasattr(label, "as_tensor") else torch.as_tensor(label)
        if values.ndim < 2 or values.shape[0] != 1:
            raise ValueError(
                f"{volume_name(label, key)} has the shape {format_shape(values.shape) or 'of a number'}; "
                "a label image must be channel first with one channel."
            )
        if values.is_floating_point():
            rounded = whole_labels(values.numpy(force=True), volume_name(label, key))
            values = torch.as_tensor(rounded, device=values.device)
        index = values[0].long()
        whole = not values.is_floating_point() or torch.equal(index.to(values.dtype), values[0])
        if not whole or (index < 0).any() or (index >= self.num_classes).any():
            problem = label_problem(values.numpy(force=True), self.num_classes)
            raise ValueError(f"{volume_name(label, key)} {problem}; correct the label, its map or `num_classes`.")
        table = self._table.to(device=index.device, dtype=values.dtype)
        return convert_to_dst_type(table[:, index], label, dtype=label.dtype)[0]
