from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

__all__ = ["cut_tiles", "distant_permutations", "pad_tiles"]


def cut_tiles(image: torch.Tensor, grid: Sequence[int], jitter: int, which: torch.Tensor) -> torch.Tensor:
    """Tiles of a lattice laid over each image, each cut at a random place of its cell.

    Args:
        image: batch (B, C, *spatial) of three axes.
        grid: cells an axis; what a side has beyond a multiple stays unused at its end.
        jitter: voxels that a tile is smaller than its cell along each axis, and the room that it is moved in; so
            borders of neighbours do not match.
        which: numbers (B, T) of the cells to cut, in row-major order.

    Returns:
        tiles (B, T, C, *tile), on the image's device; places are drawn by torch's global generator of it.

    Raises:
        ValueError: the cells are no larger than the jitter, or a number of axes other than three.
    """
    size, device = image.shape[2:], image.device
    if len(size) != 3 or len(grid) != 3:
        raise ValueError(
            f"Tiles are cut of images of three axes by a grid of three, not of {list(size)} by {list(grid)}."
        )
    cell = [n // count for n, count in zip(size, grid, strict=True)]
    if min(cell) <= jitter:
        raise ValueError(
            f"Images of {list(size)} voxels have cells of {cell} in a grid of {list(grid)}, which leave no tile at a "
            f"jitter of {jitter}: set a larger roi_size, or a lower jitter."
        )
    begin = torch.stack(torch.unravel_index(which, tuple(grid)), -1) * torch.tensor(cell, device=device)
    begin = begin + torch.randint(jitter + 1, begin.shape, device=device)
    index = []
    for axis, side in enumerate(cell):
        place = begin[..., axis, None] + torch.arange(side - jitter, device=device)
        index.append(place.view(*which.shape, *(-1 if a == axis else 1 for a in range(3))))
    sample = torch.arange(len(image), device=device).view(-1, 1, 1, 1, 1)
    voxels = (sample, *index)
    return image.movedim(1, -1)[voxels].movedim(-1, 2)


def pad_tiles(tiles: torch.Tensor, stride: Sequence[int]) -> torch.Tensor:
    """Tiles (N, C, *tile), their borders continued to the next size of two strides an axis or more that is a multiple.

    An encoder's deepest map has two cells an axis then: instance norms refuse a single one in training.
    """
    pad = []
    for side, step in zip(reversed(tiles.shape[2:]), reversed(stride), strict=True):
        room = max(2, math.ceil(side / step)) * step - side
        pad += [room // 2, room - room // 2]
    return F.pad(tiles, pad, mode="replicate") if any(pad) else tiles


def distant_permutations(length: int, count: int, seed: int = 0, candidates: int = 20000) -> torch.Tensor:
    """Permutations (count, length) that differ from one another in as many places as can be found.

    Greedy, as in Noroozi and Favaro, "Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles" (ECCV
    2016): the next is the candidate farthest from all chosen ones in Hamming distance. Here it is that with the largest
    least distance, and of those the largest sum, where they take the sum alone, which lets near twins in. The
    candidates are all permutations, or where there are more than ``candidates`` so many random ones.

    Args:
        length: of a permutation.
        count: number of permutations.
        seed: of the first permutation and the candidates.
        candidates: see above.

    Raises:
        ValueError: there are not as many permutations, or candidates.
    """
    available = min(math.factorial(length), candidates)
    if not 0 < count <= available:
        raise ValueError(f"{count} permutations of {length} tiles cannot be had: there are {available} to choose from.")
    random = np.random.default_rng(seed)
    if math.factorial(length) <= candidates:
        pool = np.array(list(itertools.permutations(range(length))), dtype=np.int16)
    else:
        pool = random.permuted(np.tile(np.arange(length, dtype=np.int16), (candidates, 1)), axis=1)
    chosen = [int(random.integers(len(pool)))]
    least, total = np.full(len(pool), length + 1), np.zeros(len(pool), dtype=int)
    while len(chosen) < count:
        distance = (pool != pool[chosen[-1]]).sum(1)
        least, total = np.minimum(least, distance), total + distance
        chosen.append(int(np.lexsort((total, least))[-1]))
    return torch.from_numpy(pool[chosen].astype(np.int64))
