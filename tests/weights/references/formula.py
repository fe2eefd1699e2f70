"""Weights and images that need no file: a function of a tensor's name and shape."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import torch

__all__ = ["formula", "sample"]


def formula(name: str, shape: Sequence[int]) -> torch.Tensor:
    """Values that differ from tensor to tensor and from element to element; variances are positive."""
    count = math.prod(shape)
    start = (zlib.crc32(name.encode()) % 10007) / 100
    values = torch.sin(torch.arange(count, dtype=torch.float64) * 1.7 + start)
    scale = 1 / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.5
    if name.endswith("running_var"):
        values = 1.5 + values / 2
    return (values * scale).float().reshape(tuple(shape))


def sample(values: torch.Tensor) -> list[float]:
    """Some of the values of a map, from all of it, for comparison."""
    flat = values.detach().double().flatten()
    return [round(value, 6) for value in flat[:: max(1, len(flat) // 23)].tolist()]
