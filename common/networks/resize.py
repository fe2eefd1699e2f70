"""Linear resampling of class maps, quick on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from .substitution import is_recorded

MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def resize_linear(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Resample a map (B, C, *grid) to (B, C, *size) as ``F.interpolate`` does, without aligned corners, in float32 or
    float64.

    On a CPU, each axis is one product with the matrix of that axis, and an axis that keeps its size costs nothing.
    torch's own kernels visit every voxel's eight corners, also in the gradient, and took five times as long
    (``benchmarks/resize.py``). On a GPU, in exports and under ``torch.compile`` they are used all the same.
    """
    x = x if x.dtype == torch.float64 else x.float()
    size = tuple(size)
    if x.device.type != "cpu" or is_recorded():
        return F.interpolate(x, size=size, mode=MODES[len(size)], align_corners=False)
    with torch.autocast("cpu", enabled=False):
        for axis, number in enumerate(size, start=2):
            if x.shape[axis] != number:
                x = torch.matmul(x.transpose(axis, -1), _weights(x.shape[axis], number, x.dtype)).transpose(axis, -1)
    return x


def _weights(length: int, number: int, dtype: torch.dtype) -> torch.Tensor:
    """Weights (length, number) of the old values in each new one."""
    return F.interpolate(torch.eye(length, dtype=dtype)[None], size=number, mode="linear", align_corners=False)[0]
