from types import SimpleNamespace

import pytest
import torch

from common.transforms import TokenViews, cell_of_token, noise_mask


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("axes", [(-2, -1), (-3, -1), (-3, -2, -1)])
def test_the_turned_view_comes_back(axes):
    image = torch.rand(64, 1, 4, 4, 4)
    views = TokenViews(axes=axes, mask_ratio=0)
    first, second, element = views(image)
    assert torch.equal(second, image)
    assert torch.equal(views.restore(first, element), image)
    assert 0.6 < (first != image).flatten(1).any(1).float().mean() < 1
    assert len(element.unique()) > 6


def test_two_axes_are_drawn_as_published():
    """Quarter turns and at most one flip: each reflection twice as often as each rotation."""
    views = TokenViews()
    counts = views.draw(24000, torch.device("cpu")).bincount(minlength=8)
    assert sorted((counts / 1000).round().tolist()) == [2, 2, 2, 2, 4, 4, 4, 4]


def test_without_axes_nothing_turns():
    image = torch.rand(3, 1, 2, 4, 6)
    first, _, element = TokenViews(axes=None, mask_ratio=0)(image)
    assert torch.equal(first, image) and torch.equal(TokenViews(axes=None).restore(image, element), image)


def test_views_have_textures_of_their_own_and_only_the_second_a_mask():
    image = torch.zeros(2, 1, 8, 8, 8)
    views = TokenViews(lambda x: x + torch.rand(len(x), 1, 1, 1, 1) + 5, axes=None, mask_size=(2, 4, 4))
    first, second, _ = views(image)
    assert len(first.unique()) == 2 and first.min() > 4
    assert ((second < 4).flatten(1).float().mean(1) == 0.75).all()
    assert not torch.equal(first.flatten(1)[:, 0], second.flatten(1).max(1).values)


def test_mask_replaces_whole_cells_of_each_sample():
    image = torch.ones(3, 2, 4, 8, 8) * 9
    masked, mask = noise_mask(image, 0.5, (2, 4, 2), noise=0.1)
    assert mask.shape == (3, 4, 8, 8)
    cells = mask.view(3, 2, 2, 2, 4, 4, 2).permute(0, 1, 3, 5, 2, 4, 6).flatten(4)
    assert (cells.all(-1) | ~cells.any(-1)).all() and (cells.all(-1).flatten(1).sum(1) == 8).all()
    assert not torch.equal(mask[0], mask[1])
    where = mask[:, None].expand_as(image)
    assert (masked[~where] == 9).all() and masked[where].std() == pytest.approx(0.1, abs=0.01)
    assert masked[where].mean().abs() < 0.02


def test_cells_at_the_far_end_reach_beyond_the_image():
    image = torch.ones(2, 1, 10, 8, 1) * 9
    masked, mask = noise_mask(image, 0.5, (4, 4, 1))
    whole = torch.nn.functional.pad(mask, (0, 0, 0, 0, 0, 2))  # 3 x 2 cells of 4 x 4
    cells = whole.view(2, 3, 4, 2, 4).permute(0, 1, 3, 2, 4).flatten(3)
    expected = torch.tensor([16, 16, 8])[:, None]
    assert ((cells.sum(-1) == 0) | (cells.sum(-1) == expected)).all()
    assert (cells.any(-1).flatten(1).sum(1) == 3).all() and ((masked == 9) == ~mask[:, None]).all()


def test_errors():
    for cell in ((2, 16, 2), (2, 4), (2, 4, 0)):
        with pytest.raises(
            ValueError, match=r"images of \[4, 8, 6\] voxels cannot be masked .*: set mask_size to 3 num"
        ):
            noise_mask(torch.ones(1, 1, 4, 8, 6), 0.5, cell)
    for cell, ratio in (((2, 4, 3), 1.0), ((4, 8, 6), 0.75)):
        with pytest.raises(ValueError, match=r"masks every cell .* set a smaller mask_ratio or mask_size"):
            noise_mask(torch.ones(1, 1, 4, 8, 6), ratio, cell)
    with pytest.raises(ValueError, match="mask_ratio must be at least 0 and below 1"):
        TokenViews(mask_ratio=1.5)
    with pytest.raises(ValueError, match="equal sizes"):
        TokenViews()(torch.ones(1, 1, 4, 8, 6))


def test_the_published_restore_is_that_of_the_code():
    """Turned back, then flipped along the axis of the flip's number, by a loop over samples."""
    views = TokenViews(mask_ratio=0, published_restore=True)
    image = torch.rand(12, 3, 2, 4, 4)
    drawn = torch.arange(12)
    moved, expected = [], []
    for sample, turns, flip in zip(image, drawn % 4, drawn // 4, strict=True):
        there = sample.rot90(int(turns), (2, 3))
        there = there if flip == 0 else there.flip(1 + int(flip))
        moved.append(there)
        expected.append(there.rot90(4 - int(turns), (2, 3)).flip(int(flip)))
    views.draw = lambda batch, device: drawn
    first, _, element = views(image)
    assert torch.equal(first, torch.stack(moved))
    restored = views.restore(first, element)
    assert torch.equal(restored, torch.stack(expected))
    assert int((restored == image).flatten(1).all(1).sum()) == 2


def test_with_the_published_restore_views_are_drawn_alike():
    image = torch.rand(40, 1, 2, 4, 4)
    firsts = []
    for published in (False, True):
        torch.manual_seed(3)
        firsts.append(TokenViews(mask_ratio=0, published_restore=published)(image)[0])
    assert torch.equal(*firsts)
    for axes in (None, (-3, -2, -1)):
        with pytest.raises(ValueError, match="published_restore undoes quarter turns of two axes"):
            TokenViews(axes=axes, published_restore=True)


def test_cells_of_a_token():
    """The paper's, from nnFormer's strides for Synapse and tumours; and one voxel at least."""
    for stride, cell in (((16, 32, 32), [4, 8, 8]), ((32, 32, 32), [8, 8, 8]), ((2, 8, 14), [1, 2, 3])):
        assert cell_of_token(SimpleNamespace(strides=((1, 1, 1), stride))) == cell
