from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..precision import without_autocast

__all__ = ["EncoderClassifier", "EncoderRegressor"]


class EncoderClassifier(nn.Module):
    """Classifier over any encoder: global average pooling of its maps, layer norm, dropout, one linear layer.

    What follows the encoder is computed in float32 under autocast, too.

    Args:
        encoder: module that returns a list of maps, finest first, and states their ``channels``.
        num_classes: number of logits.
        dropout: probability of dropping a pooled feature.
        maps: ``"last"``, or ``"all"`` to pool each map, with a separate layer norm, and join them. Means of fine maps
            say how much of an image they respond to, such as the share of a tissue. The deepest map may not.
        hidden: units of a hidden layer with a ReLU, in place of the layer norm: the head of the nets that Medical
            Transformer is compared with (Jun et al., section 4.2 and table 3). None has no such layer.

    Raises:
        ValueError: another ``maps``, or ``hidden`` less than 1.

    ``forward(image (B, C, *spatial))`` returns logits (B, num_classes), not normalised.
    """

    def __init__(
        self,
        encoder: nn.Module,
        num_classes: int,
        dropout: float = 0.0,
        maps: str = "last",
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.maps = encoder, maps
        self.head = _head(encoder, num_classes, dropout, maps, hidden)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return _of_means(self.head, self.encoder(image), self.maps)


class EncoderRegressor(nn.Module):
    """Regressor of one number over any encoder, with the layers of :class:`EncoderClassifier`.

    The head works on a standardised scale, and its output is scaled back to the target's unit, in float32. So an
    untrained net starts near the mean, and the loss can use that unit, such as years.

    Args:
        encoder: module that returns a list of maps, finest first, and states their ``channels``.
        mean: mean of the target over the training set, in its unit.
        std: standard deviation of the target over the training set, in its unit, larger than 0.
        dropout, maps, hidden: of :class:`EncoderClassifier`.

    ``forward(image (B, C, *spatial))`` returns (B, 1) in the target's unit. ``mean`` and ``std`` are buffers, so a
    state dict carries them.

    Raises:
        ValueError: when ``std`` is not larger than 0; another ``maps``, or ``hidden`` less than 1.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        encoder: nn.Module,
        mean: float = 0.0,
        std: float = 1.0,
        dropout: float = 0.0,
        maps: str = "last",
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        if not std > 0:
            raise ValueError(f"The standard deviation of the target must be larger than 0, got {std}.")
        self.encoder, self.maps = encoder, maps
        self.head = _head(encoder, 1, dropout, maps, hidden)
        self.register_buffer("mean", torch.tensor(float(mean)))
        self.register_buffer("std", torch.tensor(float(std)))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return _of_means(self.head, self.encoder(image), self.maps).float() * self.std + self.mean


class _Norms(nn.ModuleList):
    """A layer norm for each part of a vector."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__(nn.LayerNorm(width) for width in widths)
        self.widths = list(widths)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = x.split(self.widths, dim=1)
        return torch.cat([norm(part) for norm, part in zip(self, parts, strict=True)], dim=1)


def _head(encoder: Any, outputs: int, dropout: float, maps: str, hidden: int | None) -> nn.Sequential:
    if maps not in ("last", "all"):
        raise ValueError(f"maps is {maps!r}; it must be 'last' or 'all'.")
    if hidden is not None and hidden < 1:
        raise ValueError(f"hidden is a number of units, 1 or more, or None, not {hidden}.")
    channels = encoder.channels if maps == "all" else encoder.channels[-1:]
    if hidden is not None:
        first = nn.Linear(sum(channels), hidden)
        return nn.Sequential(first, nn.ReLU(inplace=True), nn.Dropout(dropout), nn.Linear(hidden, outputs))
    norm = _Norms(channels) if maps == "all" else nn.LayerNorm(channels[0])
    return nn.Sequential(norm, nn.Dropout(dropout), nn.Linear(sum(channels), outputs))


def _of_means(head: nn.Module, found: Sequence[torch.Tensor], maps: str) -> torch.Tensor:
    """The head on the means over the grids of an encoder's maps (B, C), in float32 under autocast, too.

    bfloat16 cannot tell an age of 70.0 years from one of 70.2, and the head is too small for its speed to matter.
    """
    dtype = next(head.parameters()).dtype
    with without_autocast(found[-1].device):
        means = [one.flatten(2).mean(dim=2, dtype=dtype) for one in (found if maps == "all" else found[-1:])]
        return head(torch.cat(means, dim=1))
