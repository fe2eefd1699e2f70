from __future__ import annotations

import pytest
from torch import nn


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
