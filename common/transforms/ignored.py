"""Voxels that do not count: -1 in a label image, such as the padding around a volume."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

__all__ = ["ClearIgnoredd", "LabelIndicesd"]

IGNORED = -1


class LabelIndicesd(MapTransform):
    """MONAI's ``FgBgToIndicesd`` that takes voxels of -1 neither for foreground nor for background.

    MONAI takes each value but 0 for foreground, so that crops would be centred on padding.

    Args:
        keys: label images (1, *spatial). Indices of the flattened voxels go to ``KEY_fg_indices``, ``KEY_bg_indices``.
        allow_missing_keys: whether items may lack keys.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            label = d[key].as_tensor() if isinstance(d[key], MetaTensor) else torch.as_tensor(d[key])
            label = label.flatten()
            d[f"{key}_fg_indices"] = (label > 0).nonzero().flatten().cpu()
            d[f"{key}_bg_indices"] = (label == 0).nonzero().flatten().cpu()
        return d


class ClearIgnoredd(MapTransform):
    """Make background of the voxels of ``keys`` that the label ignores, so that they are not scored.

    As in inference, where what is said of padding is cut off.

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
        ignored = ignored.as_tensor() if isinstance(ignored, MetaTensor) else ignored
        for key in self.key_iterator(d):
            d[key] = d[key].masked_fill(ignored.to(d[key].device), 0)
        return d
