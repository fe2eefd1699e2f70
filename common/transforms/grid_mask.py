from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def random_grid_mask(
    batch: int,
    grid: Sequence[int],
    ratio: float,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Random masks (batch, *grid), true at exactly ``round(ratio * cells)`` cells of each sample.

    Ties round to the even number, as in Python's ``round``.

    Args:
        batch: number of samples; each has its own draw.
        grid: cells along each axis.
        ratio: share of the cells that are masked, 0 to 1.
        device: where the mask is made.
        generator: source of the draw, torch's global generator of the device when left out.

    Raises:
        ValueError: when ``ratio`` is not within 0 to 1.
    """
    _check_ratio(ratio)
    cells = math.prod(grid)
    order = torch.rand(batch, cells, device=device, generator=generator).argsort(dim=1)
    mask = torch.zeros(batch, cells, dtype=torch.bool, device=device)
    mask.scatter_(1, order[:, : round(ratio * cells)], True)
    return mask.view(batch, *grid)


def upsample_mask(mask: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Enlarge a mask of cells (B, *grid) to a mask of voxels (B, *size); each cell becomes a block of equal sides.

    Args:
        mask: mask of cells.
        size: voxels along each axis, each a multiple of the grid's side.

    Raises:
        ValueError: when ``size`` is not a multiple of the grid along every axis.
    """
    grid = mask.shape[1:]
    if len(size) != len(grid) or any(voxels % cells for voxels, cells in zip(size, grid, strict=True)):
        raise ValueError(f"A size of {tuple(size)} voxels is no multiple of the mask's grid {tuple(grid)}.")
    for axis, (voxels, cells) in enumerate(zip(size, grid, strict=True), start=1):
        mask = mask.repeat_interleave(voxels // cells, dim=axis)
    return mask


def random_cell_mask(
    batch: int, size: Sequence[int], cell: Sequence[int], ratio: float, device: torch.device | str | None = None
) -> torch.Tensor:
    """Random masks of voxels (batch, *size) in whole cells; the last cells are cut if a side is no multiple of theirs.

    Args:
        batch: number of samples; each has its own draw.
        size: voxels along each axis.
        cell: voxels along each axis of a cell.
        ratio: share of the cells that are masked, 0 to 1.
        device: where the mask is made.
    """
    grid = [-(-voxels // side) for voxels, side in zip(size, cell, strict=True)]
    covered = [cells * side for cells, side in zip(grid, cell, strict=True)]
    mask = upsample_mask(random_grid_mask(batch, grid, ratio, device=device), covered)
    for axis, voxels in enumerate(size, start=1):
        mask = mask.narrow(axis, 0, voxels)
    return mask


def random_keep_indices(
    batch: int,
    tokens: int,
    ratio: float,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random split of the tokens of each sample into kept and masked ones.

    ``K = round((1 - ratio) * tokens)`` tokens are kept, but always at least one. Ties round to the even number, as in
    Python's ``round``.

    Args:
        batch: number of samples; each has its own draw.
        tokens: tokens of a sample.
        ratio: share of the tokens that are masked, 0 to 1.
        device: where the indices are made.
        generator: source of the draw, torch's global generator of the device when left out.

    Returns:
        indices of the kept tokens (batch, K) and of the masked ones (batch, tokens - K), each in ascending order.

    Raises:
        ValueError: when ``ratio`` is not within 0 to 1.
    """
    _check_ratio(ratio)
    kept = max(1, round((1 - ratio) * tokens))
    order = torch.rand(batch, tokens, device=device, generator=generator).argsort(dim=1)
    return order[:, :kept].sort(dim=1).values, order[:, kept:].sort(dim=1).values


def _check_ratio(ratio: float) -> None:
    if not 0 <= ratio <= 1:
        raise ValueError(f"The share of masked cells must be between 0 and 1, not {ratio}.")
