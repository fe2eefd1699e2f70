"""Find the voxels of an image that are not air."""

from __future__ import annotations

import torch
from monai.transforms.utils_pytorch_numpy_unification import percentile

__all__ = ["AIR_IN_HU", "RULES", "foreground_mask"]

RULES = ("tissue", "nonzero", "all")
# In Hounsfield units air is -1000, and scanners and resampling fill with -1000 or less. No MR scan goes as low.
AIR_IN_HU = -900.0
# Share of the mean signal that air stays below, noise included, and tissue does not.
AIR_SHARE = 0.1
BRIGHTEST = 99.9


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
    least = float(channel.min())
    if least <= AIR_IN_HU:
        return channel > AIR_IN_HU
    # A little below 0 is what resampling and offsets leave around air of 0.
    above = channel[channel > 0]
    level = 0.0
    if above.numel() == 0 or least < -AIR_SHARE * float(percentile(above, BRIGHTEST)):
        level, above = least, channel[channel > least]
    if above.numel() == 0:
        return torch.zeros_like(channel, dtype=torch.bool)
    signal = (above - level).clamp(max=float(percentile(above, BRIGHTEST)) - level).double()
    return channel > level + AIR_SHARE * float(signal.pow(3).sum() / signal.square().sum())
