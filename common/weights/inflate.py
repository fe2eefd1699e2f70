from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.interpolate import RectBivariateSpline
from torch.nn import functional as F

from .adapt import adapt_channels

__all__ = [
    "INFLATIONS",
    "fold_normalization",
    "inflate_depth",
    "inflate_patch_embedding",
    "resample_grid_positions",
    "resample_relative_positions",
]

INFLATIONS = ("centring", "average")
"""Ways to place a 2-D kernel along the slices of a window."""

CONVERT_AGAIN = "convert the weights again with"
"""Start of the advice if a file has another inflation than the one needed."""

EXTRA_POSITIONS = 3
"""Rows after the pairs of patches in BEiT's tables: class token to patch, patch to class token, itself."""


def fold_normalization(
    weight: torch.Tensor,
    bias: torch.Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    value_range: Sequence[float] = (-1.0, 1.0),
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fold the normalisation of images in 0..1 by ``mean`` and ``std`` into weight (O, C, h, w) and bias (O).

    The result gives the same output for images in ``value_range``: ``w_c = W_c / s_c`` and ``b' = b - sum W_c m_c /
    s_c``, with m and s in the scale of ``value_range``. For BEiT (mean and std 0.5) and images in -1..1 nothing
    changes, since it was trained in that range.

    Raises:
        ValueError: there is not one mean and one standard deviation above 0 per channel.
    """
    if len(mean) != weight.shape[1] or len(std) != weight.shape[1] or min(std) <= 0:
        raise ValueError(f"the weight has {weight.shape[1]} channels; give as many mean and std (above 0).")
    low, high = value_range
    shape = (1, -1, *[1] * (weight.ndim - 2))
    m = (low + (high - low) * torch.as_tensor(mean, dtype=torch.float64)).view(shape)
    s = ((high - low) * torch.as_tensor(std, dtype=torch.float64)).view(shape)
    scaled = weight.double() / s
    return scaled.to(weight.dtype), (bias.double() - (scaled * m).flatten(1).sum(1)).to(bias.dtype)


def inflate_depth(weight: torch.Tensor, slices: int, inflation: str = "centring") -> torch.Tensor:
    """Turn a 2-D kernel (O, C, h, w) into one for windows of ``slices`` slices, (O, C, h, w, slices).

    ``"centring"`` puts it at the slice ``slices // 2`` and zeros elsewhere, so the net starts as the 2-D net of that
    slice. ``"average"`` puts ``weight / slices`` everywhere, so it starts as the 2-D net of the mean slice (Zhang et
    al., TransSeg, section 3.3). The paper says that both keep mean and variance. But the average keeps the variance
    only if all slices are equal; for independent slices it leaves 1 / slices of it.

    Raises:
        ValueError: ``inflation`` is unknown, or ``slices`` is below 1.
    """
    if inflation not in INFLATIONS:
        raise ValueError(f"inflation is {inflation!r}; it must be one of {', '.join(INFLATIONS)}.")
    if slices < 1:
        raise ValueError(f"a window has at least one slice, not {slices}.")
    if inflation == "average":
        return (weight / slices)[..., None].repeat(*[1] * weight.ndim, slices)
    inflated = weight.new_zeros(*weight.shape, slices)
    inflated[..., slices // 2] = weight
    return inflated


def inflate_patch_embedding(
    weight: torch.Tensor,
    bias: torch.Tensor,
    slices: int,
    in_channels: int = 1,
    inflation: str = "centring",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    value_range: Sequence[float] = (-1.0, 1.0),
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inflate the patch embedding of colour images (O, 3, h, w) to windows of ``slices`` slices.

    First the source's normalisation, if given, is folded in; then channels are summed and spread; then the depth is
    inflated. Returns weight (O, in_channels, h, w, slices) and bias (O).

    Raises:
        ValueError: as ``fold_normalization`` and ``inflate_depth``.
    """
    if mean is not None and std is not None:
        weight, bias = fold_normalization(weight, bias, mean, std, value_range)
    return inflate_depth(adapt_channels(weight, in_channels), slices, inflation), bias


def resample_relative_positions(
    table: torch.Tensor, grid: Sequence[int], new_grid: Sequence[int], extra: int = EXTRA_POSITIONS
) -> torch.Tensor:
    """Table of relative positions of a token grid, ((2 h - 1) (2 w - 1) + extra, heads), for another grid.

    It follows BEiT. The old offsets are placed at geometrically growing distances, so near ones keep their meaning and
    the farthest reach the new border. A bicubic spline through them is read at the new offsets. The last ``extra`` rows
    are copied. From 14 x 14 to 32 x 32 tokens the ratio is 1.134918. An axis that shrinks or stays has the ratio 1,
    which means it is cut.

    Source: published code of Bao et al. (BEiT) and of Zhang et al. (TransSeg, ``beit3d.py``), which use
    ``scipy.interpolate.interp2d``; ``RectBivariateSpline`` is the same spline on a grid.

    Raises:
        ValueError: the table does not fit ``grid``.
    """
    h, w = (2 * int(side) - 1 for side in grid)
    if table.ndim != 2 or len(table) != h * w + extra:
        raise ValueError(
            f"a table of relative positions of {tuple(grid)} tokens has {h * w + extra} rows, not {tuple(table.shape)}."
        )
    if list(grid) == list(new_grid):
        return table.clone()
    places, offsets = zip(*(_geometric(int(a), int(b)) for a, b in zip(grid, new_grid, strict=True)), strict=True)
    values = table[: h * w].double().cpu().numpy().reshape(h, w, -1)
    degrees = [min(3, size - 1) for size in (h, w)]
    if 0 in degrees:
        raise ValueError(f"a table of {tuple(grid)} tokens has an axis of one token, which cannot be resampled.")
    heads = [
        RectBivariateSpline(*places, values[..., head], kx=degrees[0], ky=degrees[1], s=0)(*offsets)
        for head in range(values.shape[-1])
    ]
    resampled = torch.from_numpy(np.stack(heads, -1)).flatten(0, 1).to(table.dtype).to(table.device)
    return torch.cat((resampled, table[h * w :]))


def resample_grid_positions(table: torch.Tensor, grid: Sequence[int], new_grid: Sequence[int]) -> torch.Tensor:
    """Table of absolute positions (1, extra + h w, C) of a token grid, resampled bicubically to another grid.

    Rows in front of the grid's, such as the class token's, are copied (published code of DINO, Caron et al., ICCV 2021,
    and of the vision transformers of ``transformers``).

    Raises:
        ValueError: the table has fewer rows than the grid has tokens.
    """
    h, w = (int(side) for side in grid)
    extra = table.shape[1] - h * w
    if extra < 0:
        raise ValueError(f"a table of {table.shape[1]} positions is too short for {h} x {w} tokens.")
    if (h, w) == tuple(new_grid):
        return table.clone()
    image = table[:, extra:].transpose(1, 2).unflatten(2, (h, w))
    image = F.interpolate(image.float(), tuple(new_grid), mode="bicubic", align_corners=False).to(table.dtype)
    return torch.cat((table[:, :extra], image.flatten(2).transpose(1, 2)), dim=1)


def geometric_ratio(tokens: int, new_tokens: int) -> float:
    """Growth ratio q of the distances of ``tokens - 1`` old offsets so that they sum to ``new_tokens - 1``."""
    steps, farthest = tokens - 1, new_tokens - 1
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        q = (low + high) / 2
        if (1 - q**steps) / (1 - q) > farthest:
            high = q
        else:
            low = q
    return (low + high) / 2


def _geometric(tokens: int, new_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of the old offsets of an axis, and the new offsets."""
    offsets = np.arange(1 - new_tokens, new_tokens, dtype=float)
    if new_tokens <= tokens:
        return np.arange(1 - tokens, tokens, dtype=float), offsets
    distances = np.cumsum(geometric_ratio(tokens, new_tokens) ** np.arange(tokens - 1))
    return np.concatenate((-distances[::-1], [0.0], distances)), offsets
