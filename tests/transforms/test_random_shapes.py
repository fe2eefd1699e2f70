from __future__ import annotations

import pytest
import torch

from common.transforms import NoiseVolume, RandomShapes
from common.transforms.random_shapes import random_turns

LIKE = torch.zeros(4, 1, 20, 28, 24)
STILL = {"bend": 0.0, "foreground": 0.0}


def test_each_map_has_its_own_shapes_and_a_seed_repeats_them():
    torch.manual_seed(0)
    labels = RandomShapes()(LIKE)
    assert labels.shape == LIKE.shape and labels.dtype == torch.long and labels.min() == 0
    assert len({one.numpy().tobytes() for one in labels}) == 4
    assert all(3 < len(one.unique()) <= 42 for one in labels), [len(one.unique()) for one in labels]
    torch.manual_seed(0)
    assert torch.equal(RandomShapes()(LIKE), labels)


@pytest.mark.parametrize("size", [(24, 24), (16, 20, 24)])
def test_a_shape_alone_is_where_its_inequality_holds(size, monkeypatch):
    """Voxel by voxel, from the drawn numbers."""
    drawn = {}
    torch.manual_seed(1)
    shapes = RandomShapes(count=(1, 1), radius=(0.2, 0.2), **STILL)
    centre = shapes.draw_centre(1, [n / min(size) for n in size], torch.device("cpu"))
    monkeypatch.setattr(RandomShapes, "draw_centre", staticmethod(lambda *_: centre))
    turn = random_turns(1, len(size), torch.device("cpu"))
    monkeypatch.setattr("common.transforms.random_shapes.random_turns", lambda *_: turn)
    monkeypatch.setattr(torch, "rand", lambda *shape, device=None: torch.full(shape, drawn.get(shape[1:], 0.5)))
    labels = shapes(torch.zeros(1, 1, *size))[0, 0]
    power = 1 + 4 * 0.5**2
    for index in torch.cartesian_prod(*(torch.arange(n) for n in size)):
        place = torch.tensor([(int(i) - (n - 1) / 2) / min(size) for i, n in zip(index, size, strict=True)])
        local = turn[0] @ (place - centre[0, :, 0]) / 0.2
        assert int(labels[tuple(index)]) == int(sum(abs(float(x)) ** power for x in local) < 1)
    assert labels.any()


def test_a_foreground_leaves_one_piece_and_an_envelope_a_rim_around_it():
    torch.manual_seed(0)
    plain = {"count": (1, 1), "radius": (0.01, 0.01), "bend": 0.0, "foreground": 1.0}
    like = torch.zeros(6, 1, 32, 32, 32)
    for one in RandomShapes(**plain, envelope=0.0)(like)[:, 0]:
        assert set(one.unique().tolist()) <= {0, 1, 2}
        inside = (one > 0).nonzero().float()
        # A ball: as large as the volume says, except where it is cut by the border.
        radius = (inside - inside.mean(0)).norm(dim=1).max()
        assert len(inside) <= 4.19 * (radius + 1) ** 3
    for one in RandomShapes(**plain, envelope=1.0, width=(3.0, 3.0))(like)[:, 0]:
        rim = one == one.max()
        assert rim.any() and (one == 0).any()
        # No step leads from outside to inside but through the rim.
        inside, outside = (one > 0) & ~rim, one == 0
        for axis in range(3):
            ahead = [slice(None)] * 3
            behind = [slice(None)] * 3
            ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
            one_way, back = inside[tuple(ahead)] & outside[tuple(behind)], outside[tuple(ahead)] & inside[tuple(behind)]
            assert not one_way.any() and not back.any()


def test_thick_slices_are_slices_of_the_same_shapes():
    """Each is the middle one of five of a grid of cubes: shapes, foregrounds and envelopes are drawn in mm."""
    found = []
    for size, spacing in {(40, 48, 50): 2.0, (40, 48, 10): (2.0, 2.0, 10.0)}.items():
        torch.manual_seed(0)
        found.append(RandomShapes(bend=0.0, spacing=spacing)(torch.zeros(6, 1, *size)))
    cubes, slices = found
    assert torch.equal(cubes[..., 2::5], slices)
    assert all(len(one.unique()) > 3 for one in slices)


def test_shapes_of_thick_slices_fill_the_map_as_those_of_cubes():
    """With bending too, which has another lattice."""
    shares, sizes = [], {(24, 24, 20): 5.0, (60, 60, 10): (2.0, 2.0, 10.0)}
    for size, spacing in sizes.items():
        torch.manual_seed(0)
        labels = RandomShapes(foreground=0.0, spacing=spacing)(torch.zeros(24, 1, *size))
        shares.append(float((labels > 0).float().mean()))
    assert shares[0] == pytest.approx(shares[1], abs=0.02) and shares[0] > 0.3


def test_turns_are_orthogonal():
    turns = random_turns(5, 3, torch.device("cpu"))
    assert torch.allclose(turns @ turns.transpose(1, 2), torch.eye(3).expand(5, 3, 3), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"count": (0, 3)}, "count"),
        ({"radius": (0.3, 0.1)}, "radius"),
        ({"envelope": 2.0}, "envelope"),
        ({"bend": -1.0}, "bend"),
    ],
)
def test_what_is_out_of_range_is_refused(arguments, name):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        RandomShapes(**arguments)


@pytest.mark.parametrize("spacing", [0.0, (2.0, -2.0, 2.0)])
def test_a_spacing_that_is_none_is_refused(spacing):
    with pytest.raises(ValueError, match="spacing must be above 0 mm"):
        RandomShapes(spacing=spacing)(LIKE)


def test_noise_is_that_of_its_number():
    volume = NoiseVolume((3, 4, 5), 2)
    assert volume({"number": 1})["image"].shape == (2, 3, 4, 5)
    assert torch.equal(volume({"number": 1})["image"], volume({"number": 1})["image"])
    assert not torch.equal(volume({"number": 1})["image"], volume({"number": 2})["image"])
