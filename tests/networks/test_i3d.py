from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from common.networks import I3DEncoder


def count(net: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def test_parameters_are_those_of_the_published_net():
    """12,697,264 with 400 classes and three colours (piergiaj/pytorch-i3d)."""
    with torch.device("meta"):
        assert count(I3DEncoder(3)) + 400 * (1024 + 1) == 12_697_264


def test_maps_are_what_channels_and_strides_say():
    net = I3DEncoder(width=0.05).eval()
    size = (17, 32, 40)
    maps = net(torch.rand(2, 1, *size))
    assert [x.shape[1] for x in maps] == list(net.channels)
    for x, strides in zip(maps, net.strides, strict=True):
        assert tuple(x.shape[2:]) == tuple(-(-n // stride) for n, stride in zip(size, strides, strict=True))
    assert I3DEncoder.layer_names and net.architecture() == {"name": "I3DEncoder", "in_channels": 1, "width": 0.05}


@pytest.mark.parametrize("size", [16, 17])
def test_first_convolution_is_padded_as_same(size):
    """Written by hand: of an even side 2 zeros before and 3 behind, of an odd one 3 and 3."""
    torch.manual_seed(0)
    net = I3DEncoder(width=0.05).eval()
    image = torch.rand(1, 1, size, size, size)
    before, behind = (2, 3) if size % 2 == 0 else (3, 3)
    expected = F.conv3d(F.pad(image, (before, behind) * 3), net.Conv3d_1a_7x7.conv3d.weight, stride=2)
    norm = net.Conv3d_1a_7x7.bn
    expected = F.relu(F.batch_norm(expected, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=0.001))
    torch.testing.assert_close(net.Conv3d_1a_7x7(image), expected)
