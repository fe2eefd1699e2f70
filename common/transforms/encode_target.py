from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from ..volumes import volume_name

__all__ = ["EncodeTargetd"]


class EncodeTargetd(MapTransform):
    """Turn a number in a datalist (an age, a diagnosis) into a tensor for losses and metrics.

    Args:
        keys: numbers.
        num_classes: for a class from 0 to ``num_classes`` - 1: it becomes an integer scalar, (B,) in a batch. None for
            a quantity: it becomes a float (1,), (B, 1) in a batch.
        image_key: image whose file an error names.
        allow_missing_keys: whether items may lack keys.

    Raises:
        ValueError: a value is not a finite number or not a class.
    """

    def __init__(
        self,
        keys: KeysCollection,
        num_classes: int | None = None,
        image_key: Hashable = "image",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.num_classes = num_classes
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self._target(d[key], f"{volume_name(d.get(self.image_key), self.image_key)}: its {key}")
        return d

    def _target(self, value: Any, name: str) -> torch.Tensor:
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise ValueError(f"{name} is {value!r}, which is not a number; correct it in the datalist.") from None
        if not math.isfinite(number):
            raise ValueError(f"{name} is {number}, which is not finite; correct it in the datalist.")
        if self.num_classes is None:
            return torch.tensor([number], dtype=torch.float32)
        if not (number.is_integer() and 0 <= number < self.num_classes):
            raise ValueError(
                f"{name} is {value!r}, which is not a class from 0 to {self.num_classes - 1}; correct it in the "
                "datalist, "
                "or set num_classes."
            )
        return torch.tensor(int(number))
