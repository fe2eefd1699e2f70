"""What the paper of `med3d`, its published code and its README pin down (Chen et al., arXiv 1904.00625; MedicalNet)."""

from __future__ import annotations

import pytest
import torch

from common.networks import DenseASPP, DilatedResNet

# README of the published code: parameters with the norms' running statistics; depth -> shortcut, millions.
PUBLISHED = {
    10: ("B", 14.36),
    18: ("A", 32.99),
    34: ("A", 63.31),
    50: ("B", 46.21),
    101: ("B", 85.31),
    152: ("B", 117.51),
    200: ("B", 126.74),
}


@pytest.mark.parametrize("depth", PUBLISHED)
def test_backbones_have_the_published_numbers_of_parameters_and_stride_8(depth):
    shortcut, millions = PUBLISHED[depth]
    with torch.device("meta"):
        net = DilatedResNet(depth, shortcut=shortcut)
    sizes = {name: tensor.numel() for name, tensor in net.state_dict().items() if "tracked" not in name}
    assert sum(sizes.values()) / 1e6 == pytest.approx(millions, abs=0.005)
    maps = net(torch.empty(1, 1, 33, 48, 64, device="meta"))
    assert [tuple(x.shape[2:]) for x in maps[2:]] == [(5, 6, 8)] * 3
    assert net.strides[2:] == ((8, 8, 8),) * 3


@pytest.mark.parametrize(("hidden", "growth", "millions"), [(512, 128, 14.77), (128, 64, 2.52)])
def test_dense_aspp_on_2048_channels(hidden, growth, millions):
    with torch.device("meta"):
        blocks = DenseASPP([2048], 2, hidden, growth).blocks
    assert sum(parameter.numel() for parameter in blocks.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)
