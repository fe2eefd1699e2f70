from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["EncoderClassifier", "EncoderRegressor"]


class EncoderClassifier(nn.Module):
    """Classifier over any encoder: global average pooling of its last map, layer norm, dropout, one linear layer.

    Args:
        encoder: module that returns a list of maps, finest first, and states their ``channels``.
        num_classes: number of logits.
        dropout: probability of dropping a pooled feature.

    ``forward(image (B, C, *spatial))`` returns logits (B, num_classes), not normalised.
    """

    def __init__(self, encoder: nn.Module, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = _head(encoder, num_classes, dropout)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(_pooled(self.encoder, image))


class EncoderRegressor(nn.Module):
    """Regressor of one number over any encoder, with the layers of :class:`EncoderClassifier`.

    The head works on a standardised scale and its output is brought back to the target's unit in float32, so that an
    untrained net starts near the mean and the loss can be written in that unit (years, say).

    Args:
        encoder: module that returns a list of maps, finest first, and states their ``channels``.
        mean: mean of the target over the training set, in its unit.
        std: standard deviation of the target over the training set, in its unit, larger than 0.
        dropout: probability of dropping a pooled feature.

    ``forward(image (B, C, *spatial))`` returns (B, 1) in the target's unit. ``mean`` and ``std`` are buffers, so a
    state dict carries them.

    Raises:
        ValueError: when ``std`` is not larger than 0.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, encoder: nn.Module, mean: float = 0.0, std: float = 1.0, dropout: float = 0.0) -> None:
        super().__init__()
        if not std > 0:
            raise ValueError(f"The standard deviation of the target must be larger than 0, got {std}.")
        self.encoder = encoder
        self.head = _head(encoder, 1, dropout)
        self.register_buffer("mean", torch.tensor(float(mean)))
        self.register_buffer("std", torch.tensor(float(std)))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        # bfloat16 cannot tell an age of 70.0 years from one of 70.2.
        return self.head(_pooled(self.encoder, image)).float() * self.std + self.mean


def _head(encoder: Any, outputs: int, dropout: float) -> nn.Sequential:
    channels = encoder.channels[-1]
    return nn.Sequential(nn.LayerNorm(channels), nn.Dropout(dropout), nn.Linear(channels, outputs))


def _pooled(encoder: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """Mean over the grid of the last map, (B, C)."""
    return encoder(image)[-1].flatten(2).mean(dim=2)
