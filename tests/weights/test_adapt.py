from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from common.networks import SeparablePositions
from common.weights.adapt import adapt_channels, match_position_form, resample_positions, token_grid


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize(("old", "new"), [(1, 4), (1, 1), (3, 1), (2, 3), (4, 4)])
def test_an_image_repeated_over_the_channels_gives_the_same(old, new):
    weight, image = torch.randn(6, old, 2, 2, 2), torch.randn(1, 1, 4, 4, 4)
    before = F.conv3d(image.repeat(1, old, 1, 1, 1), weight)
    adapted = adapt_channels(weight, new)
    assert adapted.shape == (6, new, 2, 2, 2)
    torch.testing.assert_close(F.conv3d(image.repeat(1, new, 1, 1, 1), adapted), before, rtol=1e-4, atol=1e-5)


def test_same_grid_is_the_identity():
    table = torch.randn(1, 24, 5)
    torch.testing.assert_close(resample_positions(table, (2, 3, 4), (2, 3, 4)), table)


def test_corners_stay_and_the_middle_is_interpolated():
    table = torch.randn(1, 2 * 3 * 4, 5)
    found = resample_positions(table, (2, 3, 4), (3, 5, 7))[0].view(3, 5, 7, 5)
    volume = table[0].view(2, 3, 4, 5)
    for axis, (old, new) in enumerate(zip((2, 3, 4), (3, 5, 7), strict=True)):
        for place in range(new):  # along each axis on its own, the two others at their ends
            exact = place * (old - 1) / (new - 1)
            low = min(int(exact), old - 2)
            expected = torch.lerp(volume.movedim(axis, 0)[low], volume.movedim(axis, 0)[low + 1], exact - low)
            torch.testing.assert_close(
                found.movedim(axis, 0)[place][[0, -1]][:, [0, -1]], expected[[0, -1]][:, [0, -1]]
            )


def test_half_precision_stays():
    assert resample_positions(torch.randn(1, 8, 3).half(), (2, 2, 2), (3, 3, 3)).dtype == torch.float16


@pytest.mark.parametrize(
    ("tokens", "size", "grid"),
    [
        (24, (32, 48, 64), (2, 3, 4)),
        (27, None, (3, 3, 3)),
        (1000, None, (10, 10, 10)),
        (24, None, None),
        (25, (32, 48, 64), None),
    ],
)
def test_token_grid(tokens, size, grid):
    assert token_grid(tokens, size, (16, 16, 16)) == grid


def test_separable_positions_become_a_table():
    axial, planar, token, place = (torch.randn(1, n, 5) for n in (2, 12, 1, 1))
    state = {
        "vit.patch_embedding.parametrizations.position_embeddings.original0": axial,
        "vit.patch_embedding.parametrizations.position_embeddings.original1": planar,
        "vit.parametrizations.cls_token.original0": token,
        "vit.parametrizations.cls_token.original1": place,
        "vit.norm.weight": torch.ones(5),
    }
    before = dict(state)
    found = match_position_form(state, ["vit.patch_embedding.position_embeddings", "vit.cls_token", "vit.norm.weight"])
    assert set(found) == {"vit.patch_embedding.position_embeddings", "vit.cls_token", "vit.norm.weight"}
    table = SeparablePositions((2, 3, 4))(axial, planar)
    assert torch.equal(found["vit.patch_embedding.position_embeddings"], table)
    assert torch.equal(found["vit.cls_token"], token + place)
    assert state == before


def test_what_the_encoder_holds_as_sums_stays():
    name = "vit.parametrizations.cls_token.original"
    state = {name + "0": torch.zeros(1), name + "1": torch.ones(1)}
    assert match_position_form(state, list(state)) == state
