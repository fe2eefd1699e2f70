from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.config import KeysCollection
from monai.transforms import RandAffined
from monai.utils import ensure_tuple

from .ignored import IGNORED, signed

__all__ = ["RandAffineWithind"]


class RandAffineWithind(RandAffined):
    """MONAI's ``RandAffined`` that sets labels from outside of the crop to -1, which does not count.

    The labels beyond a crop are unknown: neither background nor a repeat of the last voxel would be right.

    Args:
        keys: images, and label images (1, *spatial) of 0 and more, or -1.
        label_keys: the ``keys`` that are label images; ``padding_mode`` applies to the others.
        kwargs: those of ``monai.transforms.RandAffined``.
    """

    def __init__(self, keys: KeysCollection, label_keys: KeysCollection = "label", **kwargs: Any) -> None:
        super().__init__(keys, **kwargs)
        self.label_keys = set(ensure_tuple(label_keys))
        self.padding_mode = tuple(
            "zeros" if key in self.label_keys else mode for key, mode in zip(self.keys, self.padding_mode, strict=True)
        )

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        labels = [key for key in self.key_iterator(dict(data)) if key in self.label_keys]
        # 0 is what the resampling has for places outside.
        d = super().__call__({**data, **{key: signed(data[key]) - IGNORED for key in labels}}, lazy=False)
        return d | {key: d[key] + IGNORED for key in labels}
