from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import Spacingd as MonaiSpacingd

from ..volumes import format_shape, volume_name


class Spacingd(MonaiSpacingd):
    """MONAI's `Spacingd` that also works if other entries are named after the key, such as `image_path`.

    Arguments, result and inverse are those of `monai.transforms.Spacingd`.

    Raises:
        ValueError: memory cannot hold a resampled volume, for example because a header has far too large voxels (names
            the file).
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
        try:
            result = super().__call__({k: v for k, v in data.items() if k not in aside}, lazy)
        except (RuntimeError, MemoryError) as error:
            if "allocate" not in str(error) and not isinstance(error, MemoryError):
                raise
            volumes = [(key, data[key]) for key in self.keys if isinstance(data.get(key), MetaTensor)]
            told = "; ".join(
                f"{volume_name(v, key)} ({format_shape(v.shape[1:])} voxels of {_mm(v)})" for key, v in volumes
            )
            raise ValueError(
                f"{told} cannot be resampled, since the result does not fit into memory: correct the voxel sizes "
                "in the "
                "header, or set a coarser `spacing`."
            ) from error
        return result | aside


def _mm(volume: Any) -> str:
    return "x".join(f"{size:.4g}" for size in volume.pixdim.tolist()) + " mm"
