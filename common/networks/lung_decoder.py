from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

__all__ = ["LungDecoder"]


class LungDecoder(nn.Module):
    """Three groups of a transposed and a plain convolution, then a 1 x 1 x 1 one (Chen et al., section 3.3).

    A group doubles the grid with 3 x 3 x 3 kernels and has C channels in its first and C / 2 in its second convolution,
    so that three groups undo the encoder's stride of 8. The paper gives C = 256 for the first group and says of the
    others only that their numbers of channels are doubled "progressively"; doubled they would be 2,048 channels at full
    size, so that halving is the default. A batch norm and a ReLU follow each of these convolutions, which the paper
    does not mention.

    Args:
        channels: those of the encoder's maps.
        num_classes: number of logits.
        features: C of the first group.
        factor: C of a group over that of the group before: 0.5, or 2 for the text's wording.

    ``forward(maps, size)`` returns logits (B, num_classes, *size). Where the size is no multiple of 8 the far end of
    the grid is cut off, where the encoder padded.
    """

    def __init__(self, channels: Sequence[int], num_classes: int, features: int = 256, factor: float = 0.5) -> None:
        super().__init__()
        inputs, layers = channels[-1], []
        for group in range(3):
            wide = int(features * factor**group)
            half = wide // 2
            layers += [
                nn.ConvTranspose3d(inputs, wide, 3, stride=2, padding=1, output_padding=1, bias=False),
                nn.BatchNorm3d(wide),
                nn.ReLU(inplace=True),
                nn.Conv3d(wide, half, 3, padding=1, bias=False),
                nn.BatchNorm3d(half),
                nn.ReLU(inplace=True),
            ]
            inputs = half
        self.layers = nn.Sequential(*layers, nn.Conv3d(inputs, num_classes, 1))

    def forward(self, maps: Sequence[torch.Tensor], size: Sequence[int]) -> torch.Tensor:
        depth, height, width = size
        return self.layers(maps[-1])[..., :depth, :height, :width]
