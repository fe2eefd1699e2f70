"""Linear resampling of maps, quick on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from ..interpolation import LINEAR
from .substitution import is_recorded

__all__ = ["resize_linear"]

LONGEST = 64  # A product takes time in proportion to the old length; from about 100 on, torch's kernel is quicker.


def resize_linear(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Resample a map (B, C, *grid) linearly to (B, C, *size), without aligned corners.

    Half precision becomes float32; float64 stays. The result may be ``x`` itself or a view.

    On a CPU, each axis is one product with the matrix of that axis, and an axis that keeps its size costs nothing.
    torch's own kernels visit the corners around every voxel one by one, in the gradient too, and are slower on small
    maps (``benchmarks/resize.py``). They are used where an axis longer than 64 changes, on GPUs, in exports and in
    compiled nets.
    A product spreads NaN and infinity along its axis; training with them stops anyway.
    """
    x = x if x.dtype == torch.float64 else x.float()
    size = tuple(size)
    if x.device.type != "cpu" or is_recorded() or not _pays(x.shape[2:], size):
        return F.interpolate(x, size=size, mode=LINEAR[len(size)], align_corners=False)
    with torch.autocast("cpu", enabled=False):
        for axis, length in enumerate(size, start=2):
            if x.shape[axis] != length:
                x = torch.matmul(x.transpose(axis, -1), _weights(x.shape[axis], length, x)).transpose(axis, -1)
    return x


def _pays(old: Sequence[int], new: Sequence[int]) -> bool:
    return all(before == after or before <= LONGEST for before, after in zip(old, new, strict=True))


def _weights(old: int, new: int, like: torch.Tensor) -> torch.Tensor:
    """Weights (old, new) of the old values in each new one."""
    one_hot = torch.eye(old, dtype=like.dtype, device=like.device)
    return F.interpolate(one_hot[None], size=new, mode="linear", align_corners=False)[0]
