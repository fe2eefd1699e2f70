from __future__ import annotations

import pytest
import torch
from monai.networks.nets import SwinUNETR

from common.networks import LegacyPatchMerging, SwinEncoder


def make(**arguments):
    torch.manual_seed(0)
    return SwinUNETR(
        1, 2, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 4), use_checkpoint=False, **arguments
    ).eval()


@pytest.mark.parametrize("normalize", [True, False])
def test_maps_are_the_transformers(normalize):
    net = make()
    encoder = SwinEncoder(net.swinViT, normalize)
    image = torch.randn(2, 1, 64, 32, 32)
    with torch.no_grad():
        maps = encoder(image)
        expected = net.swinViT(image, normalize)
    assert len(maps) == 5 and all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True))
    for found, channels, stride in zip(maps, encoder.channels, encoder.strides, strict=True):
        assert found.shape[1:] == (channels, 64 // stride[0], 32 // stride[1], 32 // stride[2])


def test_the_encoder_is_a_view():
    net = make()
    inside = {parameter.data_ptr() for parameter in net.swinViT.parameters()}
    assert {parameter.data_ptr() for parameter in SwinEncoder(net.swinViT).parameters()} == inside


@pytest.mark.parametrize(("arguments", "merging"), [({}, "PatchMerging"), ({"downsample": LegacyPatchMerging}, None)])
def test_architecture(arguments, merging):
    assert SwinEncoder(make(**arguments).swinViT).architecture() == {
        "name": "SwinEncoder",
        "use_v2": False,
        "in_channels": 1,
        "patch_size": [2, 2, 2],
        "feature_size": 12,
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 2, 2, 4],
        "window_size": [7, 7, 7],
        "patch_merging": merging or "LegacyPatchMerging",
    }


def test_images_of_another_size():
    with pytest.raises(ValueError, match=r"multiple of \(32, 32, 32\), not \(64, 48, 32\); set roi_size"):
        SwinEncoder(make().swinViT)(torch.zeros(1, 1, 64, 48, 32))
