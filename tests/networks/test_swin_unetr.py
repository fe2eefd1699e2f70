from __future__ import annotations

import pytest
import torch
from monai.networks.nets import SwinUNETR as MonaiSwinUNETR

from common.networks import SwinEncoder, SwinUNETR

SMALL = {"feature_size": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 4), "window_size": 4}


def make(cls=SwinUNETR, **arguments):
    torch.manual_seed(0)
    return cls(1, 3, **SMALL, **arguments).eval()


def test_with_equal_patches_it_is_monais_net():
    image = torch.randn(1, 1, 32, 32, 64)
    with torch.no_grad():
        assert torch.equal(make()(image), make(MonaiSwinUNETR)(image))


def test_patches_of_one_slice_keep_the_slices():
    """Synapse's patches: every map has twice the slices, the output those of the image, and all layers a gradient."""
    net = make(patch_size=(1, 2, 2)).train()
    encoder = SwinEncoder(net.swinViT)
    image = torch.randn(2, 1, 16, 32, 64)
    assert [tuple(map.shape[2:]) for map in encoder(image)] == [
        tuple(side // step for side, step in zip(image.shape[2:], stride, strict=True)) for stride in encoder.strides
    ]
    assert encoder.strides[-1] == (16, 32, 32)
    out = net(image)
    assert out.shape == (2, 3, 16, 32, 64)
    out.square().mean().backward()
    assert all(p.grad is not None for name, p in net.named_parameters() if not name.startswith("swinViT.norm"))


@pytest.mark.parametrize("size", [(16, 32, 48), (24, 32, 32)])
def test_other_sizes_are_refused(size):
    with pytest.raises(ValueError, match=r"multiple of \(16, 32, 32\), not .*; set roi_size"):
        make(patch_size=(1, 2, 2))(torch.zeros(1, 1, *size))


@pytest.mark.parametrize("patch", [4, (1, 2, 3)])
def test_other_patches_are_refused(patch):
    with pytest.raises(ValueError, match="patch_size of Swin UNETR must be 1 or 2"):
        SwinUNETR(1, 2, patch)
