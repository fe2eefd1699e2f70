from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform

from ..volumes import volume_name


class SelectChanneld(MapTransform):
    """Select one channel of each image, (C, *spatial) to (1, *spatial), by a number in the item.

    Use it for nets with one input channel on sets with several contrasts.

    Args:
        keys: images, channel first.
        channel_key: key of the number in the item; 0 if it is missing.
        allow_missing_keys: whether items may lack keys.

    Raises:
        ValueError: the image has no such channel.
    """

    def __init__(self, keys: KeysCollection, channel_key: str = "channel", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.channel_key = channel_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        channel = int(d.get(self.channel_key, 0))
        for key in self.key_iterator(d):
            if not 0 <= channel < len(d[key]):
                raise ValueError(
                    f"{volume_name(d[key], key)} has {len(d[key])} channels and no channel {channel}; correct the "
                    f"`{self.channel_key}` of its domain."
                )
            d[key] = d[key][channel : channel + 1]
        return d
