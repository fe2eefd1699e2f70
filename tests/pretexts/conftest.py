from __future__ import annotations

from collections.abc import Callable

import pytest
from monai.networks.nets import DynUNet
from torch import nn

from common.networks import DynUNetEncoder


class Cells(nn.Module):
    """An encoder that commutes with turns: cells of 2 x 2 x 2 are averaged, then a 1 x 1 x 1 convolution."""

    in_channels, channels, strides = 1, (6,), ((2, 2, 2),)

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(1, 6, 1)

    def forward(self, image):
        return [self.conv(nn.functional.avg_pool3d(image, 2))]


@pytest.fixture
def cells() -> type[Cells]:
    return Cells


@pytest.fixture
def unet() -> Callable[..., DynUNetEncoder]:
    """A small convolutional encoder, of 1, 2 and 4 voxels a cell."""

    def make(decoder: bool = False) -> DynUNetEncoder:
        net = DynUNet(3, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 6, 8])
        return DynUNetEncoder(net, decoder=decoder)

    return make
