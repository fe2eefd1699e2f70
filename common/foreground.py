"""Find the voxels of an image that are not air."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from monai.transforms.utils_pytorch_numpy_unification import percentile

__all__ = ["AIR_IN_HU", "RULES", "above_air", "foreground_mask"]

RULES = ("tissue", "nonzero", "all")
# In Hounsfield units air is -1000, and scanners and resampling fill with -1000 or less. No MR scan goes as low.
AIR_IN_HU = -900.0
# Share of the mean signal that air stays below, noise included, and tissue does not.
AIR_SHARE = 0.1
BRIGHTEST = 99.9
PART = 2**20
"""Voxels whose sums are made at a time."""
SORTED_BY_TORCH = 1_000_000
"""Values whose percentiles MONAI leaves to torch."""


def foreground_mask(channel: torch.Tensor, foreground: str | float = "tissue") -> torch.Tensor:
    """Which voxels of a channel count for its statistics.

    Args:
        channel: intensities of any shape.
        foreground: ``"tissue"``: everything brighter than air, including noise. If the least value is -900 or less, the
            image counts as CT and its foreground is above -900 HU. Otherwise the foreground is above a tenth of the
            mean signal. In this mean each voxel is weighted by its squared signal, and the brightest thousandth is cut
            off, so any amount of air adds almost nothing. Signal is measured from 0, or from the least value if that is
            far below 0. ``"nonzero"``: voxels other than 0, such as those of skull-stripped images. ``"all"``: every
            voxel, air too. A number: voxels above it.

    Raises:
        ValueError: ``foreground`` is unknown.
    """
    if foreground == "all":
        return torch.ones_like(channel, dtype=torch.bool)
    if foreground == "nonzero":
        return channel != 0
    if not isinstance(foreground, str):
        return channel > float(foreground)
    if foreground != "tissue":
        raise ValueError(f"foreground must be one of {', '.join(RULES)}, or a number, not {foreground!r}.")
    if channel.numel() == 0:
        return torch.zeros_like(channel, dtype=torch.bool)
    level = air_level(channel)
    if level == AIR_IN_HU:
        return channel > AIR_IN_HU
    above = voxels_in(channel, channel > level)
    if above.numel() == 0:
        return torch.zeros_like(channel, dtype=torch.bool)
    brightest = float(percentile_of(above, BRIGHTEST)) - level
    squares = cubes = 0.0
    for part in above.split(PART):  # in float64, of which a whole volume would be large
        signal = (part - level).clamp(max=brightest).double()
        squares, cubes = squares + float(signal.square().sum()), cubes + float(signal.pow(3).sum())
    return channel > level + AIR_SHARE * cubes / squares


def air_level(channel: torch.Tensor) -> float:
    """The value of a channel's air: -900 in a CT; 0, or the least value if that is far below 0, in others."""
    least = float(channel.min())
    if least <= AIR_IN_HU:
        return AIR_IN_HU
    if least >= 0:
        return 0.0
    # A little below 0 is what resampling and offsets leave around air of 0.
    above = voxels_in(channel, channel > 0)
    return least if above.numel() == 0 or least < -AIR_SHARE * float(percentile_of(above, BRIGHTEST)) else 0.0


def above_air(image: torch.Tensor) -> torch.Tensor:
    """Which voxels of an image (C, *spatial) are above the air of their channel, to crop by with MONAI's
    ``CropForegroundd``. Its own rule, above 0, cuts tissue off a CT and an image that was standardised before.
    """
    return torch.stack([channel > air_level(channel) for channel in image]) if image.numel() else image > 0


def voxels_in(channel: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The voxels of a mask. Torch would take three integers of 8 bytes for each."""
    return torch.from_numpy(channel.numpy()[mask.numpy()]) if channel.device.type == "cpu" else channel[mask]


def percentile_of(values: torch.Tensor, q: float | list[float]) -> Any:
    """MONAI's ``percentile`` of values whose order may be lost: large ones are sorted where they are."""
    if values.numel() <= SORTED_BY_TORCH or values.device.type != "cpu" or not values.is_contiguous():
        return percentile(values, q)
    return torch.from_numpy(np.asarray(np.percentile(values.numpy(), q, overwrite_input=True))).to(values.dtype)
