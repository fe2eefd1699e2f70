from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type
from scipy import ndimage


class LargestComponentd(MapTransform):
    """Keep the largest connected part of the foreground of a label map; the rest becomes background.

    It does the same as MONAI's `KeepLargestConnectedComponentd` with `is_onehot=False`, `independent=False` and
    connectivity 1. MONAI's needs scikit-image; this one needs only scipy.

    Args:
        keys: label maps of shape (1, *spatial).
        enabled: False returns them unchanged.
        allow_missing_keys: whether items may lack keys.
    """

    def __init__(self, keys: KeysCollection, enabled: bool = True, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.enabled = enabled

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        if self.enabled:
            for key in self.key_iterator(d):
                mask = largest_component(torch.as_tensor(d[key])[0] > 0)
                d[key] = d[key] * convert_to_dst_type(mask[None], d[key])[0]
        return d


def largest_component(mask: torch.Tensor) -> torch.Tensor:
    """The largest face-connected part of a mask; an empty mask is returned as it is."""
    parts, count = ndimage.label(mask.numpy(force=True))
    if count <= 1:
        return mask
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return torch.from_numpy(parts == sizes.argmax()).to(mask.device)
