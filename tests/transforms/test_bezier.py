import pytest
import torch

from common.transforms import RandomBezier
from common.transforms.bezier import bezier_table, look_up


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


RISES, FALLS = torch.tensor([False]), torch.tensor([True])


def slow(intensity, control, falls=False):
    """The curve at one intensity: t by bisection of x(t), in double precision."""
    (x1, y1), (x2, y2) = control.tolist()

    def curve(t, first, second):
        return 3 * (1 - t) ** 2 * t * first + 3 * (1 - t) * t**2 * second + t**3

    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if curve(middle, x1, x2) < intensity else (low, middle)
    return curve(1 - low if falls else low, y1, y2)


@pytest.mark.parametrize("control", [[[0.0, 0.0], [1.0, 1.0]], [[0.3, 0.3], [0.4, 0.4]], [[0.9, 0.9], [0.2, 0.2]]])
def test_control_points_on_the_diagonal_are_the_identity(control):
    table = bezier_table(torch.tensor([control]), RISES)
    torch.testing.assert_close(table[0], torch.linspace(0, 1, 1025), atol=1e-6, rtol=0)
    image = torch.rand(1, 2, 5, 6, 7)
    torch.testing.assert_close(look_up(image, table), image, atol=1e-6, rtol=0)


@pytest.mark.parametrize("falls", [False, True])
def test_equals_a_slow_solution_of_the_curve(falls):
    # Not at the rim of the unit square, where a curve can be upright and a table of any size is coarse.
    control = 0.1 + 0.8 * torch.rand(20, 2, 2)
    image = torch.rand(20, 1, 3, 2, 2)
    found = look_up(image, bezier_table(control, torch.full((20,), falls)))
    for values, results, points in zip(image.flatten(1), found.flatten(1), control, strict=True):
        expected = [slow(value, points, falls) for value in values.tolist()]
        torch.testing.assert_close(results, torch.tensor(expected), atol=2e-4, rtol=0)


@pytest.mark.parametrize("falls", [False, True])
def test_maps_are_monotone_from_end_to_end(falls):
    control = torch.rand(500, 2, 2)
    control[:4] = torch.tensor([[[1.0, 0], [0, 1]], [[0, 1], [1, 0]], [[0, 0], [0, 0]], [[1, 1], [1, 1]]])
    table = bezier_table(control, torch.full((500,), falls))
    assert table.shape == (500, 1025) and table.min() >= 0 and table.max() <= 1
    steps = table.diff(dim=1)
    assert (steps <= 1e-6).all() if falls else (steps >= -1e-6).all()
    ends = table[:, [-1, 0]] if falls else table[:, [0, -1]]
    ends = ends - torch.tensor([0.0, 1.0])
    # Where the curve is flat in x at an end, as of the four corners above, single precision rounds several t to it.
    assert ends[4:].abs().max() < 1e-6 and ends.abs().max() < 0.02


def test_a_falling_map_takes_x_of_t_to_y_of_1_minus_t():
    control, t = torch.rand(6, 2, 2), torch.linspace(0.02, 0.98, 30)
    points = torch.cat((torch.zeros(6, 1, 2), control, torch.ones(6, 1, 2)), dim=1)

    def curve(t):
        weights = torch.stack(((1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3))
        return torch.einsum("bpa,pt->abt", points, weights)

    table = bezier_table(control, torch.ones(6, dtype=torch.bool))
    torch.testing.assert_close(look_up(curve(t)[0], table), curve(1 - t)[1], atol=1e-3, rtol=0)


def test_each_sample_its_own_draw_and_half_of_them_fall():
    image = torch.linspace(0, 1, 8).view(1, 1, 8, 1, 1).expand(400, 2, 8, 1, 1)
    result = RandomBezier(keep_background=False)(image)
    assert result.shape == image.shape and torch.equal(result[:, 0], result[:, 1])
    middle = result[:, 0, 4, 0, 0]
    assert len(middle.unique()) > 390 and middle.std() > 0.05
    falling = result[:, 0, 0, 0, 0] > result[:, 0, -1, 0, 0]
    assert 0.4 < falling.float().mean() < 0.6
    for falls in (0.0, 1.0):
        result = RandomBezier(falling=falls, keep_background=False)(image)
        assert (result[:, 0, 0, 0, 0] == falls).all()


def test_what_lies_outside_is_clipped():
    table = bezier_table(torch.rand(1, 2, 2), RISES)
    image = torch.tensor([-3.0, 0, 0.5, 1, 7]).view(1, 1, 5, 1, 1)
    found = look_up(image, table).flatten()
    assert found[0] == found[1] == 0 and found[3] == found[4] == 1 and 0 < found[2] < 1


def test_intensities_between_the_entries_of_a_table_are_interpolated():
    table = torch.tensor([[0.0, 0.2, 1.0], [1.0, 0.5, 0.0]])
    image = torch.tensor([[0.25, 0.75, 1.0], [0.25, 0.75, 1.0]])[:, None]
    expected = torch.tensor([[0.1, 0.6, 1.0], [0.75, 0.25, 0.0]])[:, None]
    torch.testing.assert_close(look_up(image, table), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_keeps_type_and_input(dtype):
    image = torch.rand(2, 1, 4, 4, 4).to(dtype)
    before = image.clone()
    result = RandomBezier()(image)
    assert result.dtype == dtype and torch.equal(image, before)
    assert result.min() >= 0 and result.max() <= 1 and not torch.equal(result, image)


def test_follows_the_global_generator():
    image, bezier = torch.rand(2, 1, 4, 4, 4), RandomBezier()
    torch.manual_seed(3)
    first = bezier(image)
    torch.manual_seed(3)
    assert torch.equal(bezier(image), first) and not torch.equal(bezier(image), first)


def test_a_falling_map_of_the_diagonal_inverts():
    image = torch.rand(1, 1, 4, 4, 4)
    table = bezier_table(torch.tensor([[[0.25, 0.25], [0.6, 0.6]]]), FALLS)
    # x(t) = y(t): of an intensity x(t), x(1 - t). Symmetric control points make that 1 - x.
    symmetric = bezier_table(torch.tensor([[[0.25, 0.25], [0.75, 0.75]]]), FALLS)
    torch.testing.assert_close(look_up(image, symmetric), 1 - image, atol=1e-5, rtol=0)
    # An involution, wherever the points lie.
    torch.testing.assert_close(look_up(look_up(image, table), table), image, atol=1e-4, rtol=0)


@pytest.mark.parametrize("falling", [0.0, 1.0])
def test_the_background_stays_whatever_the_tissue_becomes(falling):
    """Clipped air and padding: falling maps made them white."""
    image = 0.2 + 0.8 * torch.rand(6, 2, 4, 5, 6)
    image[..., :2] = 0
    image[:, 1, ..., :2] = 0.1
    kept = RandomBezier(falling)(image)
    assert torch.equal(kept[..., :2], image[..., :2])
    assert not torch.isclose(kept[..., 2:], image[..., 2:], atol=1e-3).all(dim=(1, 2, 3, 4)).any()
    torch.manual_seed(7)
    kept = RandomBezier(falling)(image)
    torch.manual_seed(7)
    published = RandomBezier(falling, keep_background=False)(image)
    assert torch.equal(kept[..., 2:], published[..., 2:])
    assert (published[:, 0, ..., :2] == falling).all()


def test_strength_moves_control_points_to_the_identity():
    image = torch.rand(8, 1, 4, 4, 4)
    torch.testing.assert_close(RandomBezier(0.0, strength=0.0)(image), image, atol=1e-5, rtol=0)
    changes = []
    for strength in (0.2, 0.6, 1.0):
        torch.manual_seed(5)
        changes.append((RandomBezier(0.0, strength=strength)(image) - image).abs().mean())
    assert 0.01 < changes[0] < changes[1] < changes[2]
    with pytest.raises(ValueError, match=r"strength must be between 0 and 1, not 1.5"):
        RandomBezier(strength=1.5)
