from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage as ndi

from common.transforms import RandomDeformation
from common.transforms.random_deformation import integrate, smooth_noise

SIZE = (14, 18, 12)


@pytest.fixture
def labels():
    generator = torch.Generator().manual_seed(0)
    blobs = torch.nn.functional.interpolate(torch.randn(3, 4, 4, 5, 4, generator=generator), SIZE, mode="trilinear")
    return blobs.argmax(1, keepdim=True).to(torch.uint8)


def still(**kwargs):
    return RandomDeformation(**{"scaling": 0, "rotation": 0, "shearing": 0, "velocity": 0, **kwargs})


def test_the_defaults_are_those_of_the_published_generator():
    """The arguments of ``BrainGenerator``: BBillot/SynthSeg, master, ``brain_generator.py``."""
    made = RandomDeformation()
    assert (made.scaling, made.shearing, made.translation) == (0.2, 0.012, 0)
    assert made.rotation == pytest.approx(np.deg2rad(15))
    assert (made.velocity, made.knots) == (4, 0.04)  # nonlin_std, nonlin_scale
    # Its `flipping` is on; here it needs the axis, which the configs state.
    assert made.flip_axis is None


def test_without_a_range_nothing_moves(labels):
    image = torch.rand(3, 2, *SIZE)
    moved, with_it = still()(labels, image)
    assert torch.equal(moved, labels) and moved.dtype == labels.dtype
    torch.testing.assert_close(with_it, image)


def test_it_looks_up_where_scipy_does(labels):
    deform = RandomDeformation(velocity=2)
    torch.manual_seed(1)
    place, _ = deform.draw_places(3, SIZE, labels.device)
    torch.manual_seed(1)
    image = torch.rand(3, 1, *SIZE, generator=torch.Generator().manual_seed(2))
    moved, with_it = deform(labels, image)
    middle = (np.array(SIZE) - 1) / 2
    for sample in range(3):
        index = place[sample].numpy() + middle[:, None, None, None]
        expected = ndi.map_coordinates(image[sample, 0].numpy(), index, order=1, mode="grid-constant")
        np.testing.assert_allclose(with_it[sample, 0], expected, atol=1e-4)
        # Nearest neighbours differ only where a place is half way between two voxels.
        whole = ndi.map_coordinates(labels[sample, 0].numpy(), index, order=0, mode="grid-constant")
        assert (moved[sample, 0].numpy() == whole).mean() > 0.999


def test_thick_slices_turn_in_millimetres():
    """Angles and lengths are those of the body: voxels of 2 x 2 x 10 mm are turned like cubes."""
    spacing = torch.tensor([2.0, 2.0, 10.0])
    torch.manual_seed(0)
    in_voxels = RandomDeformation(scaling=0, shearing=0, rotation=20, spacing=spacing.tolist())
    matrices = in_voxels.draw_affine(200, 3, torch.device("cpu"))
    turns = torch.diag(spacing) @ matrices @ torch.diag(1 / spacing)  # places in mm to places in mm
    torch.testing.assert_close(turns @ turns.mT, torch.eye(3).expand_as(turns), atol=1e-5, rtol=0)
    torch.manual_seed(0)
    torch.testing.assert_close(
        turns, RandomDeformation(scaling=0, shearing=0, rotation=20).draw_affine(200, 3, torch.device("cpu"))
    )


def test_velocity_is_in_millimetres():
    size = (24, 24, 24)
    moves = {}
    for name, given in {"1 mm": [1.0] * 3, "none": None, "2 mm": [2.0] * 3, "slices": [1.0, 1.0, 8.0]}.items():
        torch.manual_seed(0)
        moves[name] = RandomDeformation(velocity=4, spacing=given).draw_displacement(64, size, torch.device("cpu"))
    assert torch.equal(moves["1 mm"], moves["none"])
    rms = {name: move.square().mean((0, 2, 3, 4)).sqrt() for name, move in moves.items()}
    torch.testing.assert_close(rms["2 mm"] * 2, rms["1 mm"], rtol=0.05, atol=0)  # alike in mm
    assert rms["slices"][2] * 8 == pytest.approx(float(rms["1 mm"][2]), rel=0.1)


@pytest.mark.parametrize(("spacing", "sentence"), [([1.0, 0.0, 1.0], "above 0 mm"), ([1.0, 1.0], "has no spacing")])
def test_bad_spacing(labels, spacing, sentence):
    with pytest.raises(ValueError, match=sentence):
        RandomDeformation(spacing=spacing)(labels)


@pytest.mark.parametrize("axes", [2, 3])
def test_affine_maps_stay_in_their_ranges(axes):
    torch.manual_seed(0)
    turns = RandomDeformation(scaling=0, shearing=0, rotation=20).draw_affine(400, axes, torch.device("cpu"))
    torch.testing.assert_close(turns @ turns.mT, torch.eye(axes).expand_as(turns), atol=1e-5, rtol=0)
    assert (torch.linalg.det(turns) > 0).all() and (turns - torch.eye(axes)).abs().amax() > 0.2
    if axes == 2:
        angle = torch.atan2(turns[:, 1, 0], turns[:, 0, 0]).rad2deg()
        assert angle.abs().max() <= 20 and angle.min() < -18 and angle.max() > 18
    scales = RandomDeformation(scaling=0.3, shearing=0, rotation=0).draw_affine(400, axes, torch.device("cpu"))
    diagonal = scales.diagonal(dim1=1, dim2=2)
    assert torch.equal(scales, torch.diag_embed(diagonal))
    assert 0.7 <= diagonal.min() < 0.72 and 1.28 < diagonal.max() <= 1.3
    shears = RandomDeformation(scaling=0, shearing=0.1, rotation=0).draw_affine(400, axes, torch.device("cpu"))
    assert (shears.diagonal(dim1=1, dim2=2) == 1).all() and 0.09 < (shears - torch.eye(axes)).abs().max() <= 0.1


def test_integration_follows_the_velocity():
    """Equal to many small steps along the field, looked up by scipy."""
    torch.manual_seed(0)
    velocity = 2 * smooth_noise(1, 2, (24, 20), (3, 3), torch.device("cpu"))
    flow = integrate(velocity, steps=7)[0].numpy()
    field = velocity[0].numpy()
    start = np.stack(np.meshgrid(np.arange(24.0), np.arange(20.0), indexing="ij"))
    place, steps = start.copy(), 2000
    for _ in range(steps):
        place += np.stack([ndi.map_coordinates(f, place, order=1, mode="nearest") for f in field]) / steps
    inside = np.s_[:, 4:-4, 4:-4]
    np.testing.assert_allclose(flow[inside], (place - start)[inside], atol=0.05)
    assert np.abs(flow).max() > 1


def test_the_deformation_never_folds():
    torch.manual_seed(0)
    flow = RandomDeformation(velocity=4).draw_displacement(4, (40, 48, 40), torch.device("cpu"))
    gradient = torch.stack(torch.gradient(flow, dim=(2, 3, 4)), 2)
    jacobian = gradient.movedim((1, 2), (-2, -1)) + torch.eye(3)
    assert (torch.linalg.det(jacobian) > 0).all() and flow.abs().amax() > 2


def test_each_sample_has_its_own_draw_and_a_seed_repeats_it(labels):
    same = labels[:1].repeat(3, 1, 1, 1, 1)
    torch.manual_seed(3)
    first = RandomDeformation()(same)
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[1], first[2])
    torch.manual_seed(3)
    assert torch.equal(RandomDeformation()(same), first)


def test_windows_lie_within_the_map_and_reach_its_ends():
    ramp = torch.arange(1, 21).view(1, 1, 20, 1, 1).expand(200, 1, 20, 9, 8)
    torch.manual_seed(0)
    windows = still(size=(7, 9, 8))(ramp)
    starts = windows[:, 0, 0, 4, 4]
    assert windows.shape == (200, 1, 7, 9, 8) and windows.min() > 0
    assert starts.min() == 1 and starts.max() == 14
    assert (windows[:, 0, 1:] - windows[:, 0, :-1] == 1).all()


def test_mirrored_samples_change_sides():
    sides = torch.zeros(1, 2, 10, 6, 6, dtype=torch.int16)
    sides[:, :, :5], sides[:, :, 5:] = 1, 2
    sides[:, 1, :, 0] = 7
    torch.manual_seed(0)
    plain = still(flip_axis=0)(sides.repeat(20, 1, 1, 1, 1))
    mirrored = (plain[:, 0, 0, 3, 3] == 2).sum()
    assert 4 < mirrored < 16
    kept = still(flip_axis=0, sided=[(1, 2)])(sides.repeat(20, 1, 1, 1, 1))
    assert torch.equal(kept, sides.repeat(20, 1, 1, 1, 1))
    sides[:, 1], sides[:, :, :, 0] = -1, 300  # of no pair, below and above
    kept = still(flip_axis=0, sided=[(1, 2), (40, 41)])(sides.repeat(20, 1, 1, 1, 1))
    assert torch.equal(kept, sides.repeat(20, 1, 1, 1, 1))


def test_maps_of_other_numbers_are_mirrored_alone():
    sides = torch.zeros(20, 3, 10, 6, 6, dtype=torch.int16)
    sides[:, :, :5], sides[:, :, 5:] = 1, 2
    torch.manual_seed(0)
    plain = still(flip_axis=0)(sides)
    torch.manual_seed(0)
    found = still(flip_axis=0, sided=[(1, 2)])(sides, swapped=[1])
    assert torch.equal(found[:, [0, 2]], plain[:, [0, 2]]) and not torch.equal(plain, sides)
    assert torch.equal(found[:, 1], sides[:, 1])


@pytest.mark.parametrize(
    "wrong", [{"scaling": 1}, {"rotation": -1}, {"velocity": -1}, {"knots": 0}, {"sided": [[1, 2, 3]]}]
)
def test_wrong_ranges_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RandomDeformation(**wrong)


def test_a_window_of_other_axes_is_refused(labels):
    with pytest.raises(ValueError, match="set size"):
        RandomDeformation(size=(4, 4))(labels)
