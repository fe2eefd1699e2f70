from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch
from torch.nn import functional as F

__all__ = ["adapt_channels", "match_position_form", "resample_positions", "token_grid"]


def adapt_channels(weight: torch.Tensor, channels: int) -> torch.Tensor:
    """First-layer weight (out, C, ...) for another number of input channels, (out, channels, ...).

    It is the sum over the old channels, divided equally over the new ones (Zhang et al., TransSeg, section 3.3). An
    image repeated over the new channels gives the same output as before over the old ones. An image of several channels
    gives the output of their mean.
    """
    scaled = weight.mean(1, keepdim=True) * (weight.shape[1] / channels)
    return scaled.expand(-1, channels, *weight.shape[2:]).clone()


def resample_positions(table: torch.Tensor, grid: Sequence[int], new_grid: Sequence[int]) -> torch.Tensor:
    """Position table (1, L, C) of a 3-D token grid, resampled trilinearly to another grid, corners on corners."""
    volume = table[0].T.unflatten(1, tuple(grid))[None]
    volume = F.interpolate(volume.float(), tuple(new_grid), mode="trilinear", align_corners=True)
    return volume.flatten(2)[0].T[None].to(table.dtype).contiguous()


def token_grid(tokens: int, spatial_size: Sequence[int] | None, patch_size: Sequence[int]) -> tuple[int, ...] | None:
    """Tokens per axis of an image of ``spatial_size``, or of a cube where that is unknown; None if it does not fit."""
    if spatial_size is not None:
        grid = tuple(size // patch for size, patch in zip(spatial_size, patch_size, strict=True))
    else:
        grid = (round(tokens ** (1 / 3)),) * 3
    return grid if math.prod(grid) == tokens else None


def match_position_form(state: dict[str, torch.Tensor], names: Collection[str]) -> dict[str, torch.Tensor]:
    """Sum up separable positions (``common.networks.SeparablePositions``) in ``state`` if ``names`` has one tensor."""
    state = dict(state)
    for name in names:
        prefix, _, leaf = name.rpartition(".")
        pair = [f"{prefix}.parametrizations.{leaf}.original{part}" for part in (0, 1)]
        if name not in state and all(part in state for part in pair):
            first, second = (state.pop(part) for part in pair)
            # Token and position (1, 1, C), or axial and planar positions (1, D, C) and (1, P, C).
            state[name] = (first[:, :, None] + second[:, None]).flatten(1, 2)
    return state
