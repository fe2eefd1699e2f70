from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from common.networks.plane_encoder import PlaneEncoder

WIDTHS = (4, 4, 8, 8)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def tiny(norm_scope="volume", **options):
    return PlaneEncoder(embed_dim=6, widths=WIDTHS, norm_scope=norm_scope, **options)


def norm(x):
    """Zero mean, unit variance of each channel over whatever axes follow it."""
    axes = tuple(range(2, x.ndim))
    return (x - x.mean(axes, keepdim=True)) / (x.var(axes, unbiased=False, keepdim=True) + 1e-5).sqrt()


def slow(encoder, slices, norm_scope):
    """The published ResNet-18 written out, a 2-D convolution of one slice at a time."""

    def convolve(x, conv, stride):
        weight = conv.weight
        stack = [F.conv2d(x[:, :, n], weight, None, stride, weight.shape[-1] // 2) for n in range(x.shape[2])]
        y = torch.stack(stack, dim=2)
        return norm(y) if norm_scope == "volume" else torch.stack([norm(y[:, :, n]) for n in range(y.shape[2])], dim=2)

    x = convolve(slices, encoder.stem, 2).relu()
    x = torch.stack([F.max_pool2d(x[:, :, n], 3, 2, 1) for n in range(x.shape[2])], dim=2)
    maps = []
    for number, stage in enumerate(encoder.stages):
        for block_number, block in enumerate((stage.block1, stage.block2)):
            stride = 2 if number > 0 and block_number == 0 else 1
            y = convolve(convolve(x, block.conv1, stride).relu(), block.conv2, 1)
            changes = stride == 2 or x.shape[1] != y.shape[1]
            assert (block.shortcut is not None) == changes
            x = (y + (convolve(x, block.shortcut, stride) if changes else x)).relu()
        maps.append(x)
    pooled = x.mean((3, 4)).transpose(1, 2)
    return pooled @ encoder.project.weight.T + encoder.project.bias, maps


def test_the_published_number_of_parameters():
    encoder = PlaneEncoder()
    assert sum(p.numel() for p in encoder.parameters()) == 706_384
    # 3-by-3 convolutions of two blocks a stage, one projection a stage but the first, 7-by-7 stem, linear layer.
    pairs = [(16, 16)] * 4 + [(16, 32)] + [(32, 32)] * 3 + [(32, 64)] + [(64, 64)] * 3 + [(64, 128)] + [(128, 128)] * 3
    shortcuts = 16 * 32 + 32 * 64 + 64 * 128
    assert sum(9 * i * o for i, o in pairs) + shortcuts + 49 * 16 + 128 * 64 + 64 == 706_384
    assert not any("norm" in name for name, _ in encoder.named_parameters()) and not list(encoder.buffers())
    four = PlaneEncoder(in_channels=4)
    assert sum(p.numel() for p in four.parameters()) - 706_384 == 3 * 16 * 49


@pytest.mark.parametrize("norm_scope", ["volume", "slice"])
def test_equals_a_slow_slice_by_slice_resnet(norm_scope):
    encoder, slices = tiny(norm_scope, in_channels=2), torch.rand(2, 2, 3, 40, 36)
    vectors, maps = encoder(slices)
    expected, expected_maps = slow(encoder, slices, norm_scope)
    assert vectors.shape == (2, 3, 6)
    torch.testing.assert_close(vectors, expected, atol=1e-4, rtol=1e-3)
    for found, map_ in zip(maps, expected_maps, strict=True):
        torch.testing.assert_close(found, map_, atol=1e-4, rtol=1e-3)


def test_the_published_maps():
    _, maps = PlaneEncoder()(torch.rand(1, 1, 2, 96, 114))
    assert [tuple(m.shape[1:]) for m in maps] == [(16, 2, 24, 29), (32, 2, 12, 15), (64, 2, 6, 8), (128, 2, 3, 4)]


@pytest.mark.parametrize(("norm_scope", "coupled"), [("volume", True), ("slice", False)])
def test_slices_are_coupled_by_the_statistics_of_a_volume_only(norm_scope, coupled):
    encoder, slices = tiny(norm_scope), torch.rand(2, 1, 4, 40, 40)
    changed = slices.clone()
    changed[0, :, 3] *= 3 * torch.rand(40, 40)
    (before, maps), (after, changed_maps) = encoder(slices), encoder(changed)
    assert not torch.allclose(before[0, 3], after[0, 3], atol=1e-3)
    assert torch.allclose(before[0, :3], after[0, :3], atol=1e-5) != coupled
    assert torch.allclose(maps[0][0, :, :3], changed_maps[0][0, :, :3], atol=1e-5) != coupled
    torch.testing.assert_close(before[1], after[1])  # another volume is never touched


@pytest.mark.parametrize("norm_scope", ["volume", "slice"])
def test_slices_of_another_order_give_vectors_of_that_order(norm_scope):
    encoder, slices, order = tiny(norm_scope), torch.rand(1, 1, 4, 36, 40), [2, 0, 3, 1]
    torch.testing.assert_close(encoder(slices[:, :, order])[0], encoder(slices)[0][:, order], atol=1e-5, rtol=1e-4)


def test_repeated_first_weights_do_the_same_to_repeated_channels():
    one, four = tiny(), tiny(in_channels=4)
    state = one.state_dict()
    for factor in (1, 1 / 4):  # the norm that follows takes the factor out again
        four.load_state_dict(state | {"stem.weight": factor * state["stem.weight"].repeat(1, 4, 1, 1)})
        slices = torch.rand(1, 1, 3, 40, 40) * 100
        found, expected = four(slices.repeat(1, 4, 1, 1, 1))[0], one(slices)[0]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


def test_gradients_reach_all_weights():
    encoder = tiny()
    encoder(torch.rand(1, 1, 3, 48, 48))[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in encoder.parameters())


def test_a_slice_on_its_own_needs_more_than_one_voxel_in_the_deepest_map():
    encoder = tiny("slice")
    assert encoder(torch.rand(1, 1, 2, 33, 33))[0].isfinite().all()
    with pytest.raises(ValueError, match="needs slices of 33 voxels per axis or more, not 40 x 32: pad the images"):
        encoder(torch.rand(1, 1, 2, 40, 32))
    assert tiny("volume")(torch.rand(1, 1, 2, 40, 32))[0].isfinite().all()


def test_an_unknown_scope():
    with pytest.raises(ValueError, match='norm_scope is \'batch\'; it must be "volume" or "slice"'):
        tiny("batch")
