"""Voxels that do not count: -1 in a label image, such as the padding around a volume."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from ..tensors import plain_tensor

__all__ = ["ClearIgnoredd", "LabelIndicesd", "signed"]

IGNORED = -1


def signed(label: Any) -> torch.Tensor:
    """A label image in a type that holds -1 and one more than its largest label: at least int16.

    Bytes, in which -1 is 255, become int16; float types stay as they are.
    """
    label = torch.as_tensor(label)
    return label.to(torch.promote_types(label.dtype, torch.int16))


class LabelIndicesd(MapTransform):
    """MONAI's ``FgBgToIndicesd`` that counts voxels of -1 neither as foreground nor as background.

    MONAI counts every value except 0 as foreground, which would centre crops on padding.

    Args:
        keys: label images (1, *spatial). Indices of the flattened voxels go to ``KEY_fg_indices``, ``KEY_bg_indices``.
        per_class: take this many foreground voxels of each class present, spread evenly over it (voxels of a smaller
            class repeat). Crops are then centred on each class equally often, as in nnU-Net. None takes all voxels, so
            small structures are met in proportion to their size.
        allow_missing_keys: whether items may lack keys.

    Raises:
        ValueError: ``per_class`` is less than 1.
    """

    def __init__(self, keys: KeysCollection, per_class: int | None = None, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        if per_class is not None and per_class < 1:
            raise ValueError(f"per_class is {per_class}; it must be 1 or more voxels, or None for all.")
        self.per_class = per_class

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            label = torch.as_tensor(plain_tensor(d[key]))
            label = label.flatten()
            foreground = (label > 0).nonzero().flatten().cpu()
            if self.per_class is not None and len(foreground):
                foreground = _of_each_class(foreground, label.cpu()[foreground], self.per_class)
            d[f"{key}_fg_indices"] = foreground
            d[f"{key}_bg_indices"] = (label == 0).nonzero().flatten().cpu()
        return d


def _of_each_class(indices: torch.Tensor, classes: torch.Tensor, count: int) -> torch.Tensor:
    found = [indices[classes == value] for value in classes.unique()]
    spread = torch.arange(count, dtype=torch.float64) + 0.5
    return torch.cat([voxels[(spread * len(voxels) / count).long()] for voxels in found])


class ClearIgnoredd(MapTransform):
    """Set voxels of ``keys`` that the label ignores to background, so they are not scored.

    Inference does the same: it cuts off predictions in the padding.

    Args:
        keys: images of class numbers on the label's grid, the label among them.
        label_key: label image whose voxels of -1 do not count.
        allow_missing_keys: whether items may lack keys.
    """

    def __init__(self, keys: KeysCollection, label_key: str = "label", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.label_key = label_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        if self.label_key not in d and self.allow_missing_keys:
            return d
        ignored = torch.as_tensor(d[self.label_key]) == IGNORED
        ignored = plain_tensor(ignored)
        for key in self.key_iterator(d):
            d[key] = d[key].masked_fill(ignored.to(d[key].device), 0)
        return d
