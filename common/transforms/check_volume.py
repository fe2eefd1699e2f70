from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type, convert_to_numpy

from ..grids import stored_grid_problem
from ..volumes import format_shape, image_problem, label_problem, unknown_label_problem, volume_name, whole_labels


def _offset(image: Any, label: Any, key: Hashable) -> str | None:
    """How far a label lies from its image (C, *spatial) by their affines, if it does."""
    affines = [getattr(volume, "affine", None) for volume in (image, label)]
    if any(affine is None or affine.ndim != 2 for affine in affines):
        return None  # arrays without a place
    there, here = (np.asarray(affine, float) for affine in affines)
    return stored_grid_problem(label.shape[1:], here, volume_name(image, key), image.shape[1:], there)


class CheckVolumed(MapTransform):
    """Refuse volumes that a network cannot take or that would silently spoil training.

    It refuses a wrong number of axes or channels, voxels that are not finite, constant images, and labels that do not
    fit, or lie elsewhere than their image by their affines.

    Use it right after loading, while volumes are channel first, shape (C, *spatial). They pass through unchanged,
    except that labels within 1e-6 of a whole number are rounded.

    Args:
        keys: images.
        label_key: label image, on the grid of the images, with whole numbers from 0.
        num_classes: the label's values must lie in `[0, num_classes)`. `None` sets no upper bound.
        known: the only values that the label may have; `None` allows all.
        channels: number of channels that the network takes and the images must have. `None` skips this check.
        allow_missing_keys: whether items may lack keys.

    Raises:
        ValueError: with the file and what is wrong with it.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_key: str | None = None,
        num_classes: int | None = None,
        channels: int | None = None,
        allow_missing_keys: bool = False,
        known: Collection[int] | None = None,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.label_key = label_key
        self.num_classes = num_classes
        self.channels = channels
        self.known = None if known is None else frozenset(known)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        images = [key for key in self.key_iterator(d) if key != self.label_key]
        for key in images:
            if d[key].ndim != 4:
                axes = d[key].ndim - 1
                raise ValueError(
                    f"{volume_name(d[key], key)} has {axes} axes ({format_shape(d[key].shape[1:])}), but a volume "
                    "has 3; take it out of the datalist."
                )
            found = len(d[key])
            if self.channels not in (None, found):
                channels = "1 channel" if self.channels == 1 else f"{self.channels} channels"
                raise ValueError(
                    f"{volume_name(d[key], key)} has {found} channels, but the network takes {self.channels}; give "
                    f"images of {channels}, or set `in_channels` to {found} and train for it."
                )
            problem = image_problem(convert_to_numpy(d[key]))
            if problem:
                raise ValueError(
                    f"{volume_name(d[key], key)} {problem}; repair the file or take it out of the datalist."
                )
        if self.label_key is None or (self.label_key not in d and self.allow_missing_keys):
            return d
        label = d[self.label_key]
        name = volume_name(label, self.label_key)
        if len(label) != 1:
            raise ValueError(
                f"{name} has {len(label)} channels, but a mask has one, with a number for each class: merge the "
                "channels (argmax)."
            )
        values = convert_to_numpy(label)
        whole = whole_labels(values, name)
        if whole is not values:
            d[self.label_key] = convert_to_dst_type(whole, label, dtype=label.dtype)[0]
        problem = label_problem(whole, self.num_classes)
        if problem:
            raise ValueError(f"{name} {problem}; correct the label, its map (`MapLabelsd`) or the number of classes.")
        problem = None if self.known is None else unknown_label_problem(whole, self.known)
        if problem:
            raise ValueError(
                f"{name} {problem}: set the label scheme of the maps (config id `map_label_scheme`), or `map_labels` "
                "to null to count such labels as background."
            )
        for key in images:
            if d[key].shape[1:] != label.shape[1:]:
                raise ValueError(
                    f"{name} has the shape {format_shape(label.shape[1:])}, but its image {volume_name(d[key], key)} "
                    f"has {format_shape(d[key].shape[1:])}; image and label must be on one grid."
                )
            problem = _offset(d[key], label, key)
            if problem:
                raise ValueError(
                    f"{name} {problem}; image and label must be on one grid: correct the header, or save "
                    "the label as its image is saved."
                )
        return d
