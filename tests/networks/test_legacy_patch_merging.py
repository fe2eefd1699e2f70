import pytest
import torch
from monai.networks.nets import SwinUNETR
from monai.networks.nets.swin_unetr import PatchMerging, PatchMergingV2

from common.networks import LegacyPatchMerging


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def slow_merge(layer, x):
    """MONAI 1.4's eight slices, voxel by voxel; voxels beyond the border are zero."""
    batch, depth, height, width, channels = x.shape
    out = torch.zeros(batch, (depth + 1) // 2, (height + 1) // 2, (width + 1) // 2, 8 * channels)

    def at(d, h, w):
        return x[:, d, h, w] if d < depth and h < height and w < width else torch.zeros(batch, channels)

    for d in range(out.shape[1]):
        for h in range(out.shape[2]):
            for w in range(out.shape[3]):
                out[:, d, h, w] = torch.cat(
                    [
                        at(2 * d, 2 * h, 2 * w),
                        at(2 * d + 1, 2 * h, 2 * w),
                        at(2 * d, 2 * h + 1, 2 * w),
                        at(2 * d, 2 * h, 2 * w + 1),
                        at(2 * d + 1, 2 * h, 2 * w + 1),
                        at(2 * d, 2 * h + 1, 2 * w),
                        at(2 * d, 2 * h, 2 * w + 1),
                        at(2 * d + 1, 2 * h + 1, 2 * w + 1),
                    ],
                    dim=-1,
                )
    return layer.reduction(layer.norm(out))


@pytest.mark.parametrize("size", [(4, 4, 4), (2, 4, 6), (3, 4, 5), (1, 1, 1)])
def test_equals_slow_reference(size):
    layer = LegacyPatchMerging(3)
    torch.nn.init.normal_(layer.norm.weight)
    x = torch.rand(2, *size, 3)
    torch.testing.assert_close(layer(x), slow_merge(layer, x))


def test_old_weights_load_into_the_corrected_layer_but_compute_something_else():
    legacy, corrected = LegacyPatchMerging(3), PatchMerging(3)
    corrected.load_state_dict(legacy.state_dict())
    x = torch.rand(1, 4, 4, 4, 3)
    assert legacy(x).shape == corrected(x).shape
    assert not torch.allclose(legacy(x), corrected(x))


def test_the_same_in_two_dimensions():
    legacy, monai = LegacyPatchMerging(3, spatial_dims=2), PatchMergingV2(3, spatial_dims=2)
    monai.load_state_dict(legacy.state_dict())
    x = torch.rand(2, 5, 4, 3)
    assert torch.equal(legacy(x), monai(x))


def test_in_swin_unetr():
    net = SwinUNETR(1, 2, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), downsample=LegacyPatchMerging)
    layers = [module for module in net.modules() if isinstance(module, PatchMergingV2)]
    assert len(layers) == 4 and all(type(layer) is LegacyPatchMerging for layer in layers)
    assert net.swinViT(torch.rand(1, 1, 32, 32, 32))[-1].shape == (1, 192, 1, 1, 1)


def test_rejects_other_shapes():
    with pytest.raises(ValueError, match="got shape"):
        LegacyPatchMerging(3)(torch.zeros(2, 8, 3))
