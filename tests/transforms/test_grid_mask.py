import pytest
import torch

from common.transforms import random_grid_mask, random_keep_indices, upsample_mask


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("grid, ratio, expected", [
    ((10, 10, 10), 0.85, 850), ((8, 8, 8), 0.85, 435), ((5,), 0.5, 2), ((7, 3), 0.5, 10),
    ((4, 4), 0, 0), ((4, 4), 1, 16),
])  # fmt: skip
def test_mask_count_is_exact_in_every_sample(grid, ratio, expected):
    mask = random_grid_mask(6, grid, ratio)
    assert mask.shape == (6, *grid) and mask.dtype == torch.bool
    assert mask.flatten(1).sum(dim=1).tolist() == [expected] * 6


def test_masks_differ_between_samples_and_every_cell_is_as_likely():
    mask = random_grid_mask(4000, (3, 4), 0.25)
    assert (mask[1:] != mask[:-1]).flatten(1).any(dim=1).float().mean() > 0.95
    share = mask.float().mean(dim=0)
    assert (share - 0.25).abs().max() < 0.035  # 5 standard deviations


def test_upsampled_mask_is_constant_in_each_cell():
    mask = random_grid_mask(3, (2, 3, 4), 0.4)
    voxels = upsample_mask(mask, (4, 9, 16))
    assert voxels.shape == (3, 4, 9, 16) and voxels.dtype == torch.bool
    for z in range(4):
        for y in range(9):
            for x in range(16):
                assert torch.equal(voxels[:, z, y, x], mask[:, z // 2, y // 3, x // 4])


@pytest.mark.parametrize("size", [(4, 9, 15), (4, 9)])
def test_upsample_rejects_a_size_that_is_no_multiple(size):
    with pytest.raises(ValueError, match="no multiple"):
        upsample_mask(torch.zeros(1, 2, 3, 4, dtype=torch.bool), size)


@pytest.mark.parametrize("tokens, ratio, kept", [
    (1000, 0.9, 100), (512, 0.85, 77), (1000, 0.85, 150), (5, 0.5, 2), (7, 0.5, 4),
    (10, 0.0, 10), (10, 1.0, 1), (3, 0.9, 1),
])  # fmt: skip
def test_kept_and_masked_split_the_tokens(tokens, ratio, kept):
    keep, masked = random_keep_indices(4, tokens, ratio)
    assert keep.shape == (4, kept) and masked.shape == (4, tokens - kept)
    for indices in (keep, masked):
        assert (indices.diff(dim=1) > 0).all()
    assert torch.equal(torch.cat([keep, masked], dim=1).sort(dim=1).values, torch.arange(tokens).expand(4, -1))


def test_every_token_is_as_likely_to_be_kept():
    keep, _ = random_keep_indices(4000, 10, 0.7)
    share = keep.flatten().bincount(minlength=10) / 4000
    assert (share - 0.3).abs().max() < 0.037  # 5 standard deviations


def test_generator_and_global_seed():
    for draw in (
        lambda **keywords: random_grid_mask(2, (6, 6), 0.5, **keywords),
        lambda **keywords: random_keep_indices(2, 36, 0.5, **keywords)[0],
    ):
        torch.manual_seed(1)
        first = draw()
        torch.manual_seed(1)
        assert torch.equal(draw(), first)
        generator = torch.Generator().manual_seed(1)
        assert torch.equal(draw(generator=generator), first)
        assert not torch.equal(draw(generator=generator), first)


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
def test_rejects_ratio(ratio):
    with pytest.raises(ValueError, match="share"):
        random_grid_mask(1, (2, 2), ratio)
    with pytest.raises(ValueError, match="share"):
        random_keep_indices(1, 4, ratio)
