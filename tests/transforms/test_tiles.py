from __future__ import annotations

import itertools

import pytest
import torch

from common.transforms import cut_tiles, distant_permutations, pad_tiles


def test_without_jitter_tiles_are_the_cells():
    image = torch.randn(2, 3, 7, 8, 9)
    which = torch.stack((torch.arange(12), torch.arange(12).flip(0)))
    tiles = cut_tiles(image, (2, 3, 2), 0, which)
    assert tiles.shape == (2, 12, 3, 3, 2, 4)
    for sample, numbers in enumerate(which.tolist()):
        for place, number in enumerate(numbers):
            x, y, z = list(itertools.product(range(2), range(3), range(2)))[number]
            cell = image[sample, :, 3 * x : 3 * x + 3, 2 * y : 2 * y + 2, 4 * z : 4 * z + 4]
            assert torch.equal(tiles[sample, place], cell)


def test_with_jitter_each_lies_at_its_own_place_of_its_cell():
    size, step = (12, 15, 18), 1000
    lines = torch.meshgrid(*(torch.arange(n) for n in size), indexing="ij")
    image = (lines[0] * step**2 + lines[1] * step + lines[2])[None, None].expand(4, 1, *size)
    torch.manual_seed(0)
    tiles = cut_tiles(image, (3, 3, 3), 2, torch.arange(27).expand(4, -1))
    assert tiles.shape == (4, 27, 1, 2, 3, 4)
    corners = set()
    for sample, number in itertools.product(range(4), range(27)):
        tile = tiles[sample, number, 0]
        first = int(tile[0, 0, 0])
        begin = first // step**2, first // step % step, first % step
        cell = number // 9, number // 3 % 3, number % 3
        room = [b - c * n for b, c, n in zip(begin, cell, (4, 5, 6), strict=True)]
        assert all(0 <= r <= 2 for r in room)
        assert torch.equal(tile, image[0, 0][tuple(slice(b, b + n) for b, n in zip(begin, (2, 3, 4), strict=True))])
        corners.add((*room, sample))
    assert len(corners) > 50  # of 108 drawings of 27 places


def test_an_image_too_small_is_refused():
    with pytest.raises(ValueError, match=r"too small for a jitter of 3: set a larger roi_size"):
        cut_tiles(torch.zeros(1, 1, 9, 16, 16), (3, 3, 3), 3, torch.zeros(1, 1, dtype=torch.long))
    with pytest.raises(ValueError, match="three axes"):
        cut_tiles(torch.zeros(1, 1, 9, 16), (3, 3, 3), 3, torch.zeros(1, 1, dtype=torch.long))


def test_padding_goes_to_the_next_size_of_two_strides_or_more():
    tiles = torch.randn(2, 1, 3, 9, 16)
    padded = pad_tiles(tiles, (4, 4, 8))
    assert padded.shape == (2, 1, 8, 12, 16)
    assert torch.equal(padded[:, :, 2:5, 1:10], tiles) and torch.equal(padded[:, :, 0, 1:10], tiles[:, :, 0])
    assert pad_tiles(padded, (4, 4, 8)) is padded


def distance(one, other):
    return sum(a != b for a, b in zip(one, other, strict=True))


def test_each_permutation_is_the_farthest_of_all():
    """Against every permutation of four tiles, one by one."""
    chosen = [tuple(row) for row in distant_permutations(4, 10).tolist()]
    every = list(itertools.permutations(range(4)))
    for number in range(1, 10):
        scores = {
            one: (min(distance(one, c) for c in chosen[:number]), sum(distance(one, c) for c in chosen[:number]))
            for one in every
        }
        assert scores[chosen[number]] == max(scores.values())
    assert min(distance(a, b) for a, b in itertools.combinations(chosen[:4], 2)) == 4  # a Latin square


@pytest.mark.parametrize(("length", "least"), [(8, 5), (27, 24)])
def test_a_hundred_permutations_are_far_from_one_another(length, least):
    chosen = distant_permutations(length, 100)
    assert (chosen.sort(1).values == torch.arange(length)).all()
    distances = (chosen[:, None] != chosen).sum(-1)[torch.triu(torch.ones(100, 100), 1) > 0]
    assert distances.min() >= least
    assert torch.equal(chosen, distant_permutations(length, 100))
    assert not torch.equal(chosen, distant_permutations(length, 100, seed=1))


def test_more_permutations_than_there_are_is_refused():
    with pytest.raises(ValueError, match="30 permutations of 4 tiles are too many: there are only 24"):
        distant_permutations(4, 30)
