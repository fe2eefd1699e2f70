from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform


class CheckVolumed(MapTransform):
    """Refuse volumes that would spoil training without a word: not finite, constant, or labels that do not fit.

    Stands behind loading, where the volumes are channel first, shape (C, *spatial); they pass through unchanged.

    Args:
        keys: images.
        label_key: label image; its spatial shape has to be the images', its values whole numbers from 0.
        num_classes: the label's values have to lie in `[0, num_classes)`. `None` does not bound them above.
        allow_missing_keys: whether items may lack keys.

    Raises:
        ValueError: with the file and what is wrong with it.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_key: str | None = None,
        num_classes: int | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.label_key = label_key
        self.num_classes = num_classes

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        images = [key for key in self.key_iterator(d) if key != self.label_key]
        for key in images:
            problem = image_problem(torch.as_tensor(d[key]))
            if problem:
                raise ValueError(f"{_name(d, key)} {problem}; repair the file or take it out of the datalist.")
        if self.label_key is None or (self.label_key not in d and self.allow_missing_keys):
            return d
        label = torch.as_tensor(d[self.label_key])
        problem = label_problem(label, self.num_classes)
        if problem:
            raise ValueError(
                f"{_name(d, self.label_key)} {problem}; correct the label, its map (`MapLabelsd`) or the number of "
                "classes."
            )
        for key in images:
            if d[key].shape[1:] != label.shape[1:]:
                raise ValueError(
                    f"{_name(d, self.label_key)} has the shape {_by(label.shape[1:])}, but its image {_name(d, key)} "
                    f"has {_by(d[key].shape[1:])}; image and label have to be on one grid."
                )
        return d


def image_problem(image: torch.Tensor) -> str | None:
    """What is wrong with the values of an image, as the end of a sentence; `None` where nothing is."""
    if image.numel() == 0:
        return f"has no voxels (shape {_by(image.shape)})"
    count = int((~torch.isfinite(image)).sum())
    if count:
        return f"has {count} voxels that are not finite (NaN or infinite)"
    low, high = torch.aminmax(image)
    if low == high:
        return f"is constant (every voxel is {low.item():g})"
    return None


def label_problem(label: torch.Tensor, num_classes: int | None = None) -> str | None:
    """What is wrong with the values of a label image, as the end of a sentence; `None` where nothing is."""
    count = int((~torch.isfinite(label)).sum())
    if count:
        return f"has {count} voxels that are not finite (NaN or infinite)"
    if label.is_floating_point():
        fractional = label[label != label.round()]
        if fractional.numel():
            return f"has labels that are no whole numbers ({_some(fractional)})"
    outside = label[(label < 0) | (label >= num_classes)] if num_classes is not None else label[label < 0]
    if outside.numel():
        allowed = "0 or more" if num_classes is None else f"0 to {num_classes - 1}"
        return f"has labels outside {allowed} ({_some(outside)})"
    return None


def _name(data: Mapping[Hashable, Any], key: Hashable) -> str:
    file = getattr(data[key], "meta", {}).get("filename_or_obj")
    return str(file) if file else f"The volume under the key {key!r}"


def _some(values: torch.Tensor, count: int = 5) -> str:
    unique = torch.unique(values.flatten()).tolist()
    return ", ".join(f"{v:g}" for v in unique[:count]) + (", ..." if len(unique) > count else "")


def _by(shape: torch.Size) -> str:
    return "x".join(map(str, shape))
