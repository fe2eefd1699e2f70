from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

__all__ = ["cut_tiles", "distant_permutations", "pad_tiles"]


def cut_tiles(image: torch.Tensor, grid: Sequence[int], jitter: int, which: torch.Tensor) -> torch.Tensor:
    """Cut tiles from a lattice over each image, each at a random place in its cell.

    Args:
        image: batch (B, C, *spatial) of three axes.
        grid: cells per axis; voxels beyond a multiple stay unused at the end of a side.
        jitter: how many voxels smaller a tile is than its cell along each axis. A tile moves at random within this
            margin, so borders of neighbours do not match.
        which: numbers (B, T) of the cells to cut, in row-major order.

    Returns:
        tiles (B, T, C, *tile), on the image's device; torch's global generator of that device draws the places.

    Raises:
        ValueError: the cells are no larger than the jitter, or image or grid do not have three axes.
    """
    size, device = image.shape[2:], image.device
    if len(size) != 3 or len(grid) != 3:
        raise ValueError(
            f"Tiles need images of three axes and a grid of three numbers, not {list(size)} and {list(grid)}."
        )
    cell = [n // count for n, count in zip(size, grid, strict=True)]
    if min(cell) <= jitter:
        raise ValueError(
            f"Images of {list(size)} voxels have cells of {cell} in a grid of {list(grid)}, too small for a "
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
    """Pad tiles (N, C, *tile) by repeating borders, to the next multiple of the stride, at least two strides per axis.

    The deepest map of an encoder then has at least two cells per axis: instance norms refuse a single cell in training.
    """
    pad = []
    for side, step in zip(reversed(tiles.shape[2:]), reversed(stride), strict=True):
        room = max(2, math.ceil(side / step)) * step - side
        pad += [room // 2, room - room // 2]
    return F.pad(tiles, pad, mode="replicate") if any(pad) else tiles


def distant_permutations(length: int, count: int, seed: int = 0, candidates: int = 20000) -> torch.Tensor:
    """Permutations (count, length) that differ from one another in as many places as possible.

    The search is greedy, as in Noroozi and Favaro, "Unsupervised Learning of Visual Representations by Solving Jigsaw
    Puzzles" (ECCV 2016): the next permutation is the candidate farthest from all chosen ones in Hamming distance. They
    rank candidates by the sum of distances, which lets near twins in. Here the smallest distance ranks first, and the
    sum decides ties. The candidates are all permutations, or ``candidates`` random ones if there are more.

    Args:
        length: of a permutation.
        count: number of permutations.
        seed: of the first permutation and the candidates.
        candidates: see above.

    Raises:
        ValueError: there are fewer than ``count`` permutations or candidates.
    """
    available = min(math.factorial(length), candidates)
    if not 0 < count <= available:
        raise ValueError(
            f"{count} permutations of {length} tiles are too many: there are only {available} to choose from."
        )
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
