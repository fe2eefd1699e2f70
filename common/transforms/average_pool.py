from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform
from monai.utils import TraceKeys, ensure_tuple_rep
from torch.nn import functional as F

from ..volumes import format_shape, volume_name

__all__ = ["AveragePoold"]

MODES = ("mean", "majority")


class AveragePoold(MapTransform, InvertibleTransform):
    """Average blocks of k x k x k voxels, as Jun et al. (section 4.1.1) reduce 193x229x193 mm to 96x114x96.

    Voxels at the end of an axis that do not fill a block are dropped. The affine follows: a new voxel lies at the
    middle of its block. The inverse repeats each voxel over its block, and the last voxels over the dropped part.

    Args:
        keys: images (C, X, Y, Z), and label images.
        kernel_size: k; 1 changes nothing.
        mode: "mean", or for labels "majority", the most frequent value of a block (the smallest if several tie). One
            for all keys or one per key.
        allow_missing_keys: whether items may lack keys.

    Raises:
        ValueError: ``kernel_size`` is below 1, a mode is unknown, or an axis of an image is shorter than k (names the
            file).
    """

    def __init__(
        self,
        keys: KeysCollection,
        kernel_size: int = 2,
        mode: str | Sequence[str] = "mean",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.kernel_size = int(kernel_size)
        self.modes = ensure_tuple_rep(mode, len(self.keys))
        if self.kernel_size < 1 or set(self.modes) - set(MODES):
            raise ValueError(
                f"AveragePoold takes a kernel_size of 1 or more and the modes {', '.join(MODES)}, got {kernel_size} "
                f"and {mode!r}."
            )

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        k = self.kernel_size
        for key, mode in self.key_iterator(d, self.modes):
            if k == 1:
                continue
            image = d[key]
            shape = tuple(image.shape[1:])
            if min(shape) < k:
                raise ValueError(
                    f"{volume_name(image, key)} has the shape {format_shape(shape)}, which holds no block of {k} "
                    "voxels per axis (id `pooling`): set a smaller pooling."
                )
            values = torch.as_tensor(image.as_tensor() if isinstance(image, MetaTensor) else image)
            pooled = F.avg_pool3d(values[None].float(), k)[0] if mode == "mean" else _majority(values, k)
            matrix = np.diag([k, k, k, 1.0])
            matrix[:3, 3] = (k - 1) / 2
            d[key] = self._with_affine(pooled.to(values.dtype) if mode == "majority" else pooled, image, matrix)
            self.push_transform(d[key], orig_size=shape, extra_info={"kernel_size": k})
        return d

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            if self.kernel_size == 1:
                continue
            record = self.pop_transform(d[key])
            k, shape = record[TraceKeys.EXTRA_INFO]["kernel_size"], record[TraceKeys.ORIG_SIZE]
            image = d[key]
            values = image.as_tensor() if isinstance(image, MetaTensor) else image
            for axis, size in enumerate(shape, start=1):
                place = torch.arange(size, device=values.device).div(k, rounding_mode="floor")
                values = values.index_select(axis, place.clamp(max=values.shape[axis] - 1))
            matrix = np.diag([1 / k, 1 / k, 1 / k, 1.0])
            matrix[:3, 3] = -(k - 1) / (2 * k)
            d[key] = self._with_affine(values, image, matrix)
        return d

    @staticmethod
    def _with_affine(values: torch.Tensor, image: Any, matrix: np.ndarray) -> Any:
        """``values`` with the metadata of ``image``; ``matrix`` maps their voxel coordinates to those of ``image``."""
        if not isinstance(image, MetaTensor):
            return values
        result = MetaTensor(values, meta=image.meta, applied_operations=image.applied_operations)
        result.affine = image.affine @ torch.as_tensor(matrix, dtype=image.affine.dtype)
        return result


def _majority(labels: torch.Tensor, k: int) -> torch.Tensor:
    """The most frequent value of each block of k x k x k voxels."""
    blocks = labels
    for axis in (1, 2, 3):
        blocks = blocks.unfold(axis, k, k)
    return blocks.flatten(4).mode(dim=4).values
