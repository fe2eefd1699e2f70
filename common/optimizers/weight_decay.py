from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

__all__ = ["decay_groups"]


def decay_groups(
    network: nn.Module, weight_decay: float, without: Sequence[str] = ("bias", "LayerNorm.weight")
) -> list[dict[str, Any]]:
    """Parameters in two groups for an optimiser: with weight decay, and without where the name holds one of
    ``without``.

    The default is that of TransSeg's published code, which is to be taken by the letter: tables of relative positions
    are named ``..._bias_table`` and do not decay, the weights of BEiT's norms, which are named otherwise there and
    here, do.
    """
    decaying: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        (others if any(part in name for part in without) else decaying).append(parameter)
    return [{"params": decaying, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
