from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicSpline
from torch.nn import functional as F

from common.weights.inflate import (
    fold_normalization,
    geometric_ratio,
    inflate_depth,
    inflate_patch_embedding,
    resample_grid_positions,
    resample_relative_positions,
)

SLICES = 5
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture
def weight():
    return torch.randn(6, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def bias():
    return torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def window():
    return torch.rand(2, 1, 8, 12, SLICES, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 2 - 1


def embed(window, weight, bias):
    return F.conv3d(window, weight, bias, stride=(4, 4, 1))[..., 0]


def of_slice(grey, weight, bias):
    return F.conv2d(grey.expand(-1, 3, -1, -1), weight, bias, stride=4)


def test_centring_is_the_2d_layer_on_the_centre_slice(window, weight, bias):
    inflated = inflate_patch_embedding(weight, bias, SLICES)
    expected = of_slice(window[..., 2], weight, bias)
    torch.testing.assert_close(embed(window, *inflated), expected, atol=1e-12, rtol=0)
    other = torch.randn_like(window)
    other[..., 2] = window[..., 2]
    torch.testing.assert_close(embed(other, *inflated), expected, atol=1e-12, rtol=0)


def test_average_is_the_2d_layer_on_the_mean_slice(window, weight, bias):
    inflated = inflate_patch_embedding(weight, bias, SLICES, inflation="average")
    torch.testing.assert_close(embed(window, *inflated), of_slice(window.mean(-1), weight, bias), atol=1e-12, rtol=0)


def test_average_keeps_a_fifth_of_the_variance_of_independent_slices(weight, bias):
    """The paper has it that both keep the variance."""
    noise = torch.randn(4, 1, 64, 64, SLICES, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    spread = {
        how: embed(noise, inflate_depth(weight[:, :1], SLICES, how), bias).var(correction=0)
        for how in ("centring", "average")
    }
    constant = bias.var(correction=0)
    assert (spread["average"] - constant) / (spread["centring"] - constant) == pytest.approx(1 / SLICES, rel=0.1)


@pytest.mark.parametrize("channels", [1, 4])
def test_channels_give_what_their_mean_gives(window, weight, bias, channels):
    image = torch.randn(2, channels, 8, 12, SLICES, dtype=torch.float64)
    several = inflate_patch_embedding(weight, bias, SLICES, in_channels=channels, inflation="average")
    one = inflate_patch_embedding(weight, bias, SLICES, inflation="average")
    torch.testing.assert_close(embed(image, *several), embed(image.mean(1, keepdim=True), *one), atol=1e-12, rtol=0)


def test_normalisation_is_folded_in(window, weight, bias):
    grey = window[..., 0]
    unit = (grey + 1) / 2
    mean, std = (torch.tensor(value, dtype=torch.float64).view(1, 3, 1, 1) for value in (MEAN, STD))
    expected = F.conv2d((unit.expand(-1, 3, -1, -1) - mean) / std, weight, bias, stride=4)
    for values, value_range in ((grey, (-1, 1)), (unit, (0, 1))):
        folded = fold_normalization(weight, bias, MEAN, STD, value_range)
        torch.testing.assert_close(of_slice(values, *folded), expected, atol=1e-12, rtol=0)


def test_beit_s_normalisation_changes_nothing_in_minus_one_to_one(weight, bias):
    folded = fold_normalization(weight, bias, [0.5] * 3, [0.5] * 3)
    torch.testing.assert_close(folded, (weight, bias), atol=0, rtol=0)


def test_refusals(weight, bias):
    with pytest.raises(ValueError, match="one of centring, average"):
        inflate_depth(weight, 5, "centre")
    with pytest.raises(ValueError, match="at least one slice"):
        inflate_depth(weight, 0)
    with pytest.raises(ValueError, match="3 channels"):
        fold_normalization(weight, bias, [0.5], [0.5])


@pytest.mark.parametrize(("tokens", "new", "ratio"), [(14, 32, 1.134918), (14, 15, 1.012253), (14, 20, 1.060968)])
def test_ratio_of_the_published_sizes(tokens, new, ratio):
    assert geometric_ratio(tokens, new) == pytest.approx(ratio, abs=1e-5)


def test_relative_positions_of_the_same_size_stay():
    table = torch.randn(27 * 27 + 3, 2)
    assert torch.equal(resample_relative_positions(table, (14, 14), (14, 14)), table)


def test_relative_positions_follow_the_distance():
    """A table that depends on one axis only: the spline of that axis, read at whole offsets, written out."""
    old, new = 5, 9
    row = torch.randn(2 * old - 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    extra = torch.tensor([[7.0], [8.0], [9.0]], dtype=torch.float64)
    for axis in (0, 1):
        image = row[:, None].expand(-1, 2 * old - 1) if axis == 0 else row.expand(2 * old - 1, -1)
        table = torch.cat((image.reshape(-1, 1), extra))
        made = resample_relative_positions(table, (old, old), (new, new))
        assert made.shape == ((2 * new - 1) ** 2 + 3, 1)
        assert torch.equal(made[-3:], extra)
        q, places, place = geometric_ratio(old, new), [0.0], 0.0
        for step in range(old - 1):
            place += q**step
            places = [-place, *places, place]
        expected = CubicSpline(places, row, bc_type="not-a-knot")(np.arange(1 - new, new).clip(places[0], places[-1]))
        grid = made[:-3, 0].view(2 * new - 1, 2 * new - 1)
        for line in grid if axis == 1 else grid.T:
            torch.testing.assert_close(line, torch.from_numpy(expected), atol=1e-9, rtol=0)


def test_relative_positions_of_a_smaller_grid_are_cut():
    table = torch.randn(9 * 9 + 3, 2, dtype=torch.float64)
    made = resample_relative_positions(table, (5, 5), (3, 3))
    expected = table[:-3].view(9, 9, 2)[2:-2, 2:-2].reshape(-1, 2)
    torch.testing.assert_close(made, torch.cat((expected, table[-3:])), atol=1e-9, rtol=0)


def test_relative_positions_of_another_grid_are_refused():
    with pytest.raises(ValueError, match="has 84 rows"):
        resample_relative_positions(torch.zeros(80, 2), (5, 5), (3, 3))


def test_absolute_positions():
    table = torch.randn(1, 1 + 4 * 4, 3)
    assert torch.equal(resample_grid_positions(table, (4, 4), (4, 4)), table)
    made = resample_grid_positions(table, (4, 4), (6, 8))
    assert made.shape == (1, 1 + 6 * 8, 3) and torch.equal(made[:, 0], table[:, 0])
    image = table[0, 1:].T.view(1, 3, 4, 4)
    expected = F.interpolate(image, (6, 8), mode="bicubic")[0].flatten(1).T
    torch.testing.assert_close(made[0, 1:], expected)
    with pytest.raises(ValueError, match="too short"):
        resample_grid_positions(table, (5, 5), (6, 6))


def test_a_table_of_one_token_is_not_resampled():
    with pytest.raises(ValueError, match=r"a table of \(1, 4\) tokens has an axis of one token"):
        resample_relative_positions(torch.zeros(7 + 3, 2), (1, 4), (2, 4))
