"""Norms of the convolutional nets, by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["NORMS", "FrozenBatchNorm", "make_norm"]

NORMS = ("batch", "group", "frozen")


class FrozenBatchNorm(nn.Module):
    """Batch norm that computes with its running statistics in training, too, and leaves them as they are.

    Weight and bias train. Statistics of a pre-training then do not give way to those of small batches; a net that
    starts from random weights has none (mean 0, variance 1), so that this norm is for pre-trained ones. Names and
    shapes in the state dict are those of ``torch.nn.BatchNorm3d``, and in evaluation both are one function.

    Args:
        num_features: channels.
        eps: added to the variance.
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


def make_norm(name: str, channels: int) -> nn.Module:
    """A norm of so many channels.

    Args:
        name: ``"batch"``, whose statistics are those of the whole batch under several processes
            (``common.distributed.wrap``); ``"group"``, of each sample, groups of 16 channels or so; ``"frozen"``, batch
            norm with the statistics that were loaded.
        channels: of its input.

    Raises:
        ValueError: another name.
    """
    makers: dict[str, Any] = {
        "batch": nn.BatchNorm3d,
        "group": lambda channels: nn.GroupNorm(_groups(channels), channels),
        "frozen": FrozenBatchNorm,
    }
    if name not in makers:
        raise ValueError(f"norm is one of {', '.join(NORMS)}, not {name!r}.")
    return makers[name](channels)


def _groups(channels: int) -> int:
    """The most groups, 32 at most, of 2 channels or more that divide them: one value a group has no spread."""
    return max(number for number in range(1, 33) if channels % number == 0 and channels // number >= min(2, channels))
