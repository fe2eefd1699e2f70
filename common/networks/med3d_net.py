from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from .dilated_resnet import DilatedResNet

__all__ = ["Med3DNet"]


class Med3DNet(nn.Module):
    """A dilated ResNet and a head on its maps: the nets of Med3D's transfers (Chen et al., section 3.3).

    Args:
        head: makes the head from the encoder's ``channels``: one of ``BranchDecoder``, ``LungDecoder``, ``DenseASPP``,
            ``PooledClassifier``, ``MedicalNetHead``, with its other arguments filled in (``"_mode_": "callable"`` in a
            config).
        depth, in_channels, shortcut, dilations, width, preactivation, checkpointing: as in ``DilatedResNet``.

    ``forward(image (B, C, D, H, W), **arguments)`` returns what the head makes of the maps, as a rule logits (B, K, D,
    H, W); the arguments are handed to the head.
    """

    def __init__(
        self,
        head: Callable[[Sequence[int]], nn.Module],
        depth: int = 10,
        in_channels: int = 1,
        shortcut: str = "B",
        dilations: Sequence[int] = (2, 4),
        width: int = 64,
        preactivation: bool = False,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = DilatedResNet(depth, in_channels, shortcut, dilations, width, preactivation, checkpointing)
        self.head = head(self.encoder.channels)

    def forward(self, image: torch.Tensor, **arguments: Any) -> torch.Tensor:
        return self.head(self.encoder(image), image.shape[2:], **arguments)
