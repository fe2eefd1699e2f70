import itertools

import pytest
import torch
from torch.nn import functional as F

from common.transforms import CubeGroup, rot90_batch


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def orbit(group, image):
    """Every element of the group applied to one image (C, *spatial)."""
    everything = torch.arange(group.order)
    return group.apply(image.expand(group.order, *image.shape), everything)


@pytest.mark.parametrize("axes", [(-2, -1), (-3, -1), (-1, -2), (-3, -2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
def test_rot90_batch_is_rot90_of_each_sample(axes, dtype):
    image = torch.randint(0, 9, (9, 2, 4, 4, 4)).to(dtype)
    k = torch.arange(-4, 5)
    expected = torch.stack([torch.rot90(x, int(n), axes) for x, n in zip(image, k, strict=True)])
    assert torch.equal(rot90_batch(image, k, axes), expected)


def test_rot90_batch_leaves_other_axes_free_and_takes_2d():
    image = torch.rand(4, 1, 5, 3, 3)
    k = torch.tensor([0, 1, 2, 3])
    expected = torch.stack([torch.rot90(x, int(n), (-2, -1)) for x, n in zip(image, k, strict=True)])
    assert torch.equal(rot90_batch(image, k), expected)
    assert torch.equal(rot90_batch(image[:, :, 0], k), expected[:, :, 0])


def test_rot90_batch_with_unequal_sides_takes_even_turns_only():
    image = torch.rand(3, 1, 2, 4, 5)
    assert torch.equal(rot90_batch(image, torch.tensor([2, 0, -2])), torch.stack([
        torch.rot90(image[0], 2, (-2, -1)), image[1], torch.rot90(image[2], 2, (-2, -1)),
    ]))  # fmt: skip
    with pytest.raises(ValueError, match="equal sizes"):
        rot90_batch(image, torch.tensor([2, 1, 0]))


def test_the_group_is_all_symmetries_of_the_cube():
    image = torch.rand(1, 3, 3, 3)
    group = CubeGroup()
    assert group.order == 48
    expected = [
        torch.flip(image.permute(0, *(1 + axis for axis in order)), flips)
        for order in itertools.permutations(range(3))
        for length in range(4)
        for flips in itertools.combinations((-3, -2, -1), length)
    ]
    ours = orbit(group, image)
    assert torch.equal(ours[0], image)
    assert {x.numpy().tobytes() for x in ours} == {x.contiguous().numpy().tobytes() for x in expected}
    assert len({x.numpy().tobytes() for x in ours}) == 48


def test_two_axes_give_the_eight_symmetries_of_the_square():
    image = torch.rand(1, 2, 3, 3)
    group = CubeGroup(axes=(-2, -1))
    assert group.order == 8
    turns = [torch.rot90(image, k, (-2, -1)) for k in range(4)]
    expected = {x.contiguous().numpy().tobytes() for turn in turns for x in (turn, turn.flip(-1))}
    assert {x.numpy().tobytes() for x in orbit(group, image)} == expected


@pytest.mark.parametrize("axes, shape", [((-3, -2, -1), (3, 4, 4, 4)), ((-2, -1), (3, 5, 4, 4)), ((-2, -1), (3, 4, 4))])
@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
def test_restore_is_the_exact_inverse(axes, shape, memory_format):
    group = CubeGroup(axes)
    image = torch.rand(group.order, *shape)
    if memory_format == "channels_last":
        image = image.movedim(1, -1).contiguous().movedim(-1, 1)
    element = torch.arange(group.order)
    moved = group.apply(image, element)
    assert moved.shape == image.shape
    assert torch.equal(group.restore(moved, element), image)
    assert torch.equal(group.apply(group.restore(image, element), element), image)
    assert (moved != image).flatten(1).any(dim=1).tolist() == [False] + [True] * (group.order - 1)


@pytest.mark.parametrize("axes", [(-3, -2, -1), (-2, -1)])
def test_composition_is_one_after_the_other(axes):
    group = CubeGroup(axes)
    first, second = torch.cartesian_prod(torch.arange(group.order), torch.arange(group.order)).T
    image = torch.rand(1, 1, 3, 3, 3).expand(len(first), 1, 3, 3, 3)
    stepwise = group.apply(group.apply(image, first), second)
    assert torch.equal(group.apply(image, group.compose(second, first)), stepwise)
    everything = torch.arange(group.order)
    assert torch.equal(group.compose(group.inverse(everything), everything), torch.zeros_like(everything))
    assert torch.equal(group.compose(everything, group.inverse(everything)), torch.zeros_like(everything))


def test_acts_alike_on_the_image_and_on_its_token_grid():
    """Tokens (here block means) of the moved image, brought back, are the tokens of the image."""
    group = CubeGroup()
    image = torch.rand(48, 2, 8, 8, 8)
    element = torch.arange(48)
    tokens = F.avg_pool3d(group.apply(image, element), 2)
    torch.testing.assert_close(group.restore(tokens, element), F.avg_pool3d(image, 2))


def test_from_turns_is_rot90_then_flip():
    group = CubeGroup(axes=(-2, -1))
    turns, flip = torch.cartesian_prod(torch.arange(-1, 5), torch.arange(3)).T
    image = torch.rand(len(turns), 2, 3, 4, 4)
    expected = [torch.rot90(x, int(k), (-2, -1)) for x, k in zip(image, turns, strict=True)]
    expected = [x if f == 0 else x.flip(-2 if f == 1 else -1) for x, f in zip(expected, flip, strict=True)]
    element = group.from_turns(turns, flip)
    assert torch.equal(group.apply(image, element), torch.stack(expected))
    assert torch.equal(group.restore(torch.stack(expected), element), image)


@pytest.mark.parametrize("axes, order", [((-3, -2, -1), 48), ((-2, -1), 8)])
def test_draw_is_uniform_and_seeded(axes, order):
    group = CubeGroup(axes)
    drawn = group.draw(200 * order)
    counts = drawn.bincount(minlength=order)
    assert len(counts) == order
    assert (counts - 200).abs().max() < 80  # 5.7 standard deviations
    first, second = (group.draw(20, generator=torch.Generator().manual_seed(seed)) for seed in (3, 3))
    assert torch.equal(first, second)


def test_gradient_flows_back_to_the_voxel_it_came_from():
    group = CubeGroup()
    image = torch.rand(48, 1, 3, 3, 3, requires_grad=True)
    weight = torch.rand(48, 1, 3, 3, 3)
    element = torch.arange(48)
    (group.apply(image, element) * weight).sum().backward()
    assert torch.equal(image.grad, group.restore(weight, element))


def test_errors():
    with pytest.raises(ValueError, match="equal sizes"):
        CubeGroup().apply(torch.zeros(2, 1, 4, 4, 5), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="one integer for each"):
        CubeGroup().apply(torch.zeros(2, 1, 4, 4, 4), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="one integer for each"):
        rot90_batch(torch.zeros(2, 1, 4, 4, 4), torch.zeros((), dtype=torch.long))
    with pytest.raises(ValueError, match="spatial axes"):
        CubeGroup().apply(torch.zeros(2, 4, 4, 4), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="spatial axes"):
        rot90_batch(torch.zeros(2, 1, 4, 4, 4), torch.zeros(2, dtype=torch.long), axes=(3, 4))
    with pytest.raises(ValueError, match="two axes"):
        CubeGroup().from_turns(torch.zeros(2, dtype=torch.long), torch.zeros(2, dtype=torch.long))
    with pytest.raises(IndexError):
        CubeGroup(axes=(-2, -1)).apply(torch.zeros(1, 1, 4, 4, 4), torch.tensor([8]))


@pytest.mark.parametrize("axes", [(), (-1, -1), (2, 3)])
def test_rejects_axes(axes):
    with pytest.raises(ValueError, match="axes"):
        CubeGroup(axes)
