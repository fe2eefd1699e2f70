from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import USE_COMPILED
from monai.data import MetaTensor, get_track_meta
from monai.data.utils import AFFINE_TOL
from monai.transforms import Spacingd as MonaiSpacingd
from monai.transforms import SpatialResample as MonaiSpatialResample
from monai.transforms import TraceableTransform

from ..volumes import format_shape, volume_name
from .resampling import SLAB_BYTES, Resampling


class Spacingd(MonaiSpacingd):
    """MONAI's `Spacingd` that also works if other entries are named after the key, such as `image_path`.

    Arguments, result and inverse are those of `monai.transforms.Spacingd`. Trilinear resampling goes slab by slab, and
    takes no memory beside volume and result; MONAI's takes ten times the volume (float64 and three coordinates a
    voxel).

    Raises:
        ValueError: memory cannot hold a resampled volume, for example because a header has far too large voxels (names
            the file).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        stock = self.spacing_transform.sp_resample
        self.spacing_transform.sp_resample = SpatialResample(
            stock.mode, stock.padding_mode, stock.align_corners, stock.dtype, stock.lazy
        )

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


class SpatialResample(MonaiSpatialResample):
    """MONAI's, under whose name items note it; slab by slab where it is trilinear, in float64, with a volume's last
    voxels beyond it."""

    def __call__(
        self,
        img: Any,
        dst_affine: Any = None,
        spatial_size: Any = None,
        mode: Any = None,
        padding_mode: Any = None,
        align_corners: bool | None = None,
        dtype: Any = None,
        lazy: bool | None = None,
    ) -> torch.Tensor:
        given = (dst_affine, spatial_size, mode, padding_mode, align_corners, dtype, lazy)
        way = self._way(img, *given)
        if way is None:
            return super().__call__(img, *given)
        shape = tuple(map(int, spatial_size))
        made = torch.empty(len(img), *shape, device=img.device)
        volume = img.as_tensor()
        resampling = Resampling(way, volume.shape[1:], shape)
        rows = max(1, SLAB_BYTES // (8 * len(img) * shape[1] * shape[2]))
        for start in range(0, shape[0], rows):
            stop = min(start + rows, shape[0])
            made[:, start:stop] = resampling.rows(lambda low, high: volume[:, low:high], start, stop)
        noted = TraceableTransform.track_transform_meta(
            img,
            sp_size=torch.tensor(shape),
            affine=torch.as_tensor(way),
            extra_info={
                "dtype": "float64",
                "mode": "bilinear",
                "padding_mode": "border",
                "align_corners": False,
                "src_affine": img.affine.double(),
            },
            orig_size=tuple(img.shape[1:]),
            transform_info=self.get_transform_info(),
            lazy=False,
        )
        result: torch.Tensor = MetaTensor(made).copy_meta_from(noted)
        return result

    def _way(
        self,
        img: Any,
        affine: Any,
        shape: Any,
        mode: Any,
        padding_mode: Any,
        align_corners: bool | None,
        dtype: Any,
        lazy: bool | None,
    ) -> np.ndarray | None:
        """From voxels of the result to those of the volume; None where MONAI does what there is to do."""
        if not isinstance(img, MetaTensor) or img.ndim != 4 or img.pending_operations or not get_track_meta():
            return None
        corners = self.align_corners if align_corners is None else align_corners
        settings = (mode or self.mode, padding_mode or self.padding_mode, corners, dtype or self.dtype)
        if lazy or (lazy is None and self.lazy) or USE_COMPILED or affine is None or np.ndim(shape) != 1:
            return None
        if settings != ("bilinear", "border", False, np.float64) or len(shape) != 3 or min(shape) < 1:
            return None
        before, after = img.affine.double().numpy(force=True), np.asarray(affine, np.float64)
        if before.shape != (4, 4) or after.shape != (4, 4) or abs(np.linalg.det(before)) == 0:
            return None
        way = np.linalg.solve(before, after)
        pairs = ((before, after), (way, np.eye(4)))
        if tuple(shape) == tuple(img.shape[1:]) and any(np.allclose(a, b, atol=AFFINE_TOL) for a, b in pairs):
            return None
        return way


def _mm(volume: Any) -> str:
    return "x".join(f"{size:.4g}" for size in volume.pixdim.tolist()) + " mm"
