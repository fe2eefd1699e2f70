from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from common.transforms import CellMask, GenesisDamage
from common.transforms.damage import shuffle_cells

OFF = {"shuffle_prob": 0, "curve_prob": 0, "paint_prob": 0}


@pytest.fixture
def image():
    return 3 * torch.randn(4, 2, 28, 21, 35, generator=torch.Generator().manual_seed(0)) - 1


@pytest.mark.parametrize("ratio", [0.25, 0.75])
def test_cells_are_blanked_whole_and_as_many_as_said(ratio):
    image = torch.rand(3, 2, 8, 12, 16) + 1
    masked, mask = CellMask(ratio, (4, 4, 4), fill=-5)(image)
    cells = mask.unfold(1, 4, 4).unfold(2, 4, 4).unfold(3, 4, 4).flatten(4).float()
    assert set(cells.mean(-1).unique().tolist()) == {0.0, 1.0}
    assert (cells.mean(-1).flatten(1).sum(1) == round(ratio * 24)).all()
    assert (masked[mask[:, None].expand_as(image)] == -5).all()
    assert torch.equal(masked[~mask[:, None].expand_as(image)], image[~mask[:, None].expand_as(image)])
    assert not torch.equal(mask[0], mask[1])


def test_cells_at_the_end_are_cut():
    masked, mask = CellMask(0.5, (4, 4, 4))(torch.ones(1, 1, 6, 8, 10))
    assert mask.shape == (1, 6, 8, 10) and torch.equal(masked[:, 0] == 0, mask)


def test_shuffling_keeps_the_values_of_each_cell():
    """Against the lattice that the same draw makes, cell by cell."""
    image = torch.rand(2, 20, 31, 40)
    for seed in range(5):
        moved = shuffle_cells(image, random.Random(seed))
        again = random.Random(seed)
        edges = []
        for n in image.shape[1:]:
            side = again.randint(1, n // 10)
            start = again.randrange(side)
            edges.append([i for i in range(n + 1) if i in (0, n) or (i + start) % side == 0])
        assert sorted(image[0].flatten().tolist()) == sorted(moved[0].flatten().tolist())
        for a in zip(edges[0], edges[0][1:], strict=False):
            for b in zip(edges[1], edges[1][1:], strict=False):
                for c in zip(edges[2], edges[2][1:], strict=False):
                    box = (slice(*a), slice(*b), slice(*c))
                    one, other = (v[(slice(None), *box)].flatten(1) for v in (image, moved))
                    key = lambda v: np.array(sorted(map(tuple, v.T.tolist())))  # noqa: E731
                    np.testing.assert_array_equal(key(one), key(other))  # channels move alike
    assert not torch.equal(moved, image)


def test_the_defaults_are_those_of_the_published_code():
    """MrGiovanni/ModelsGenesis, ``pytorch/config.py`` and the half of ``nonlinear_transformation`` in ``utils.py``."""
    made = GenesisDamage()
    assert made.shuffle_prob == 0.5  # local_rate
    assert made.curve_prob == 0.9  # nonlinear_rate
    assert (made.paint_prob, made.outside_prob) == (0.9, 0.8)  # paint_rate, outpaint_rate
    assert made.curve.falling == 0.5 and made.curve.keep_background is False and made.curve.strength == 1


def test_nothing_is_the_identity(image):
    damaged, mask = GenesisDamage(**OFF)(image)
    torch.testing.assert_close(damaged, image)
    assert not mask.any()


@pytest.mark.parametrize("outside", [0.0, 1.0])
def test_painted_boxes_have_the_published_sizes(image, outside):
    torch.manual_seed(0)
    damage = GenesisDamage(**{**OFF, "paint_prob": 1}, outside_prob=outside)
    for seed in range(40):
        mask = damage.draw_mask((28, 42, 56), random.Random(seed))
        kept = ~mask if outside else mask
        where = kept.nonzero()
        width = where.amax(0) - where.amin(0) + 1 if len(where) else torch.zeros(3)
        if outside:  # boxes of three to four sevenths; the first is always there
            assert (width >= torch.tensor([12, 18, 24])).all() and where.amin() >= 3
        elif len(where):
            assert (width >= torch.tensor([4, 7, 9])).all() and where.amin() >= 3
    damaged, mask = damage(image)
    kept = ~mask[:, None].expand_as(image)
    torch.testing.assert_close(damaged[kept], image[kept])
    assert (damaged[~kept] != image[~kept]).float().mean() > 0.99
    for one, made in zip(image, damaged, strict=True):
        assert made.min() >= one.min() - 1e-4 and made.max() <= one.max() + 1e-4


def test_curves_rise_or_fall(image):
    torch.manual_seed(0)
    damaged, _ = GenesisDamage(**{**OFF, "curve_prob": 1}, falling=0.5)(image.repeat(3, 1, 1, 1, 1))
    directions = set()
    for one, made in zip(image.repeat(3, 1, 1, 1, 1), damaged, strict=True):
        step = made.flatten()[one.flatten().argsort()].diff()
        assert (step >= -1e-4).all() or (step <= 1e-4).all()
        directions.add(bool(step.sum() > 0))
    assert directions == {True, False}


def test_a_seed_repeats_it(image):
    made = []
    for _ in range(2):
        torch.manual_seed(5)
        made.append(GenesisDamage()(image)[0])
    assert torch.equal(*made) and not torch.equal(made[0], image)


def test_wrong_cells_are_refused():
    with pytest.raises(ValueError, match="ratio"):
        CellMask(1.0)
    with pytest.raises(ValueError, match="axes"):
        CellMask(0.5, (4, 4))(torch.rand(1, 1, 8, 8, 8))
