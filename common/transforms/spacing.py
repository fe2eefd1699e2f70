from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from monai.transforms import Spacingd as MonaiSpacingd


class Spacingd(MonaiSpacingd):
    """MONAI's `Spacingd` that works where other entries are named after the key, such as `image_path`.

    Arguments, result and inverse are those of `monai.transforms.Spacingd`.
    """

    def __call__(self, data: Mapping[Hashable, torch.Tensor], lazy: bool | None = None) -> dict[Hashable, torch.Tensor]:
        # MONAI 1.6.0 and 1.6.1 take every entry whose name begins with the key and an underscore for a metadata
        # dictionary and call `update` on it. MONAI Label puts a string `image_path` beside `image`, and fails.
        prefixes = tuple(f"{key}_" for key in self.keys)
        aside = {
            k: v
            for k, v in data.items()
            if isinstance(k, str) and k.startswith(prefixes) and k not in self.keys and not isinstance(v, dict)
        }
        result = super().__call__({k: v for k, v in data.items() if k not in aside}, lazy)
        return result | aside
