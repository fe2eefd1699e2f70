from __future__ import annotations

import bisect
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform


class NumberToClassd(MapTransform):
    """Turn a number of an item, such as an age or a rating, into the class of the range that it lies in.

    The class is the count of bounds that are not larger: with bounds ``[4]``, ratings 1 to 3 are class 0 and 4 to 5
    class 1, as for malignancy in LIDC (Chen et al., arXiv 1904.00625, section 4.2).

    Args:
        keys: of the numbers.
        bounds: from the smallest to the largest.
        allow_missing_keys: whether items may lack keys.

    Raises:
        ValueError: the bounds do not rise, or a value is not a number.
    """

    def __init__(self, keys: KeysCollection, bounds: Sequence[float], allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.bounds = [float(bound) for bound in bounds]
        if not self.bounds or any(a >= b for a, b in zip(self.bounds, self.bounds[1:], strict=False)):
            raise ValueError(f"The bounds of classes must rise, and there must be at least one: {list(bounds)}.")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            try:
                number = float(d[key])
            except (TypeError, ValueError):
                number = float("nan")
            if number != number:
                raise ValueError(
                    f"{d.get('image', 'An item')} has {d[key]!r} under {key!r}, which is not a number; correct the "
                    "datalist, or set `label_key`."
                )
            d[key] = bisect.bisect_right(self.bounds, number)
        return d
