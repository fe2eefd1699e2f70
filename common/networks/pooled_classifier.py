from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

__all__ = ["PooledClassifier"]


class PooledClassifier(nn.Module):
    """Mean over the encoder's last map and a fully connected layer, as 1 x 1 x 1 kernels: the nodule classifier's head.

    Chen et al., section 3.3. ``EncoderClassifier`` differs from it by a layer norm.

    Args:
        channels: those of the encoder's maps.
        num_classes: number of logits.

    ``forward(maps, size)`` returns logits (B, num_classes), in single precision also under autocast, so that chances
    made of them sum to one.
    """

    def __init__(self, channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Conv3d(channels[-1], num_classes, 1)

    def forward(self, maps: Sequence[torch.Tensor], size: Sequence[int] | None = None) -> torch.Tensor:
        return self.fc(maps[-1].mean(dim=(2, 3, 4), keepdim=True)).flatten(1).float()
