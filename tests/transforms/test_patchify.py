from __future__ import annotations

import pytest
import torch

from common.transforms import patchify, unpatchify


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("size", "patch"), [((4, 6, 8), (2, 2, 2)), ((4, 6, 8), (4, 3, 1)), ((2, 3, 4), (2, 3, 4))])
def test_against_slices_and_back(size, patch, channels):
    image = torch.randn(2, channels, *size)
    grid = [n // p for n, p in zip(size, patch, strict=True)]
    patches = patchify(image, patch)
    number = 0
    for d in range(grid[0]):
        for h in range(grid[1]):
            for w in range(grid[2]):
                starts = [place * side for place, side in zip((d, h, w), patch, strict=True)]
                where = tuple(slice(start, start + side) for start, side in zip(starts, patch, strict=True))
                block = image[(slice(None), slice(None), *where)]
                assert torch.equal(patches[:, number], block.movedim(1, -1).flatten(1))
                number += 1
    assert patches.shape[1] == number
    assert torch.equal(unpatchify(patches, grid, patch), image)
