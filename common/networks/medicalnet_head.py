from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .branch_decoder import upsample

__all__ = ["MedicalNetHead"]


class MedicalNetHead(nn.Module):
    """The head of MedicalNet's published demonstration, ``conv_seg`` in ``models/resnet.py``; not the paper's.

    A transposed 2 x 2 x 2 convolution to stride 4, a 3 x 3 x 3 one and a 1 x 1 x 1 one without bias, norms and ReLUs
    between them.

    Args:
        channels: those of the encoder's maps.
        num_classes: number of logits.
        features: channels of the first two convolutions.

    ``forward(maps, size)`` returns, in training, logits (B, num_classes, *size / 4): the label is brought to their grid
    (``common.losses.VoxelCrossEntropy``). In evaluation they are upsampled to ``size``, as the published test script
    does.
    """

    def __init__(self, channels: Sequence[int], num_classes: int, features: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ConvTranspose3d(channels[-1], features, 2, stride=2),
            nn.BatchNorm3d(features),
            nn.ReLU(inplace=True),
            nn.Conv3d(features, features, 3, padding=1, bias=False),
            nn.BatchNorm3d(features),
            nn.ReLU(inplace=True),
            nn.Conv3d(features, num_classes, 1, bias=False),
        )

    def forward(self, maps: Sequence[torch.Tensor], size: Sequence[int]) -> torch.Tensor:
        logits = self.layers(maps[-1])
        return logits if self.training else upsample(logits, size)
