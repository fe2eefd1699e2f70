from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from .branch_decoder import upsample

__all__ = ["DenseASPP"]


class DenseASPP(nn.Module):
    """Densely connected dilated convolutions on the encoder's last map, in 3-D: the fine liver net's head.

    Yang et al., "DenseASPP for Semantic Segmentation in Street Scenes", CVPR 2018, with the layers of its published
    code (``models/DenseASPP.py``) and 3-D kernels, as Chen et al., section 3.3, use it. Each dilation's block sees the
    map and what the blocks before it made.

    Args:
        channels: those of the encoder's maps.
        num_classes: number of logits.
        hidden, growth: channels between a block's two convolutions, and those that it adds: 512 and 128, or 128 and 64
            in the smaller published net.
        dilations: one block each.
        dropout: of whole channels, behind each block and before the last convolution.

    ``forward(maps, size)`` returns logits (B, num_classes, *size) in float32, upsampled trilinearly.
    """

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int,
        hidden: int = 512,
        growth: int = 128,
        dilations: Sequence[int] = (3, 6, 12, 18, 24),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        inputs = channels[-1]
        self.blocks = nn.ModuleList()
        for number, dilation in enumerate(dilations):
            self.blocks.append(_block(inputs, hidden, growth, dilation, norm=number > 0))
            inputs += growth
        self.classifier = nn.Conv3d(inputs, num_classes, 1)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """The map (B, C, *grid) with what the blocks add: (B, C + len(dilations) * growth, *grid)."""
        for block in self.blocks:
            x = torch.cat([F.dropout3d(block(x), self.dropout, self.training), x], dim=1)
        return x

    def forward(self, maps: Sequence[torch.Tensor], size: Sequence[int]) -> torch.Tensor:
        x = F.dropout3d(self.features(maps[-1]), self.dropout, self.training)
        return upsample(self.classifier(x), size)


def _block(inputs: int, hidden: int, growth: int, dilation: int, norm: bool) -> nn.Sequential:
    """Without a norm at its start for the first, whose input has just left an encoder's norm and ReLU."""
    return nn.Sequential(
        *([nn.BatchNorm3d(inputs)] if norm else []),
        nn.ReLU(),
        nn.Conv3d(inputs, hidden, 1),
        nn.BatchNorm3d(hidden),
        nn.ReLU(inplace=True),
        nn.Conv3d(hidden, growth, 3, padding=dilation, dilation=dilation),
    )
