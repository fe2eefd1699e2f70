"""What encoders that work in stages have in common: the image size that their strides allow, their maps, and rates that
grow with depth."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

__all__ = ["check_size", "depth_rates", "run_stages", "triple"]


def check_size(size: Sequence[int], stride: Sequence[int], network: str = "This network") -> None:
    """Refuse an image with a side that is no multiple of the stride.

    Args:
        size: voxels of the image per axis.
        stride: voxels per axis for one of the deepest map.
        network: the network, for the error.

    Raises:
        ValueError: with what to set.
    """
    if any(side % step for side, step in zip(size, stride, strict=True)):
        raise ValueError(
            f"{network} needs an image size that is a multiple of {stride}, not {tuple(size)}; set roi_size to such a "
            "size."
        )


def run_stages(stages: Iterable[nn.Module], x: torch.Tensor) -> list[torch.Tensor]:
    """The map after each stage, of which each takes that of the one before."""
    maps = []
    for stage in stages:
        x = stage(x)
        maps.append(x)
    return maps


def depth_rates(last: float, count: int) -> list[float]:
    """Rates of stochastic depth of ``count`` blocks, from 0 to ``last``."""
    return [last * number / max(count - 1, 1) for number in range(count)]


def triple(value: int | Sequence[int]) -> tuple[int, int, int]:
    """A number for all three axes, or one for each."""
    x, y, z = (value,) * 3 if isinstance(value, int) else value
    return (x, y, z)
