"""Norms of the convolutional nets, by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["NORMS", "NO_STATISTICS", "FrozenBatchNorm", "make_norm", "refuse_no_statistics"]

NORMS = ("batch", "group", "frozen")

NO_STATISTICS = (
    "norm is frozen, but the net starts from random weights, whose statistics (mean 0, variance 1) normalise nothing: "
)
"""Start of the sentence that refuses such a training; what to do follows."""


class FrozenBatchNorm(nn.Module):
    """Batch norm that always uses its running statistics, even in training, and never updates them.

    Weight and bias train. So statistics of small batches do not replace those of pre-training. Use it for pre-trained
    nets only: a net with random weights has no statistics (mean 0, variance 1). Names and shapes in the state dict are
    those of ``torch.nn.BatchNorm3d``, and in evaluation both are the same function. ``refuse_no_statistics`` refuses to
    train a net with random weights.

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


def refuse_no_statistics(network: nn.Module, what_to_do: str) -> None:
    """Refuse to train a network whose frozen norms have only the statistics that they were made with.

    Args:
        network: its norms are looked at; tensors without memory (the device ``meta``) count as filled.
        what_to_do: end of the sentence.

    Raises:
        ValueError: no frozen norm was filled, though there are some.
    """
    frozen = [part for part in network.modules() if isinstance(part, FrozenBatchNorm)]
    if frozen and not any(_is_filled(norm) for norm in frozen):
        raise ValueError(f"{NO_STATISTICS}{what_to_do}.")


def _is_filled(norm: FrozenBatchNorm) -> bool:
    mean, variance = norm.running_mean, norm.running_var
    return mean.is_meta or bool(mean.any()) or bool((variance != 1).any())


def make_norm(name: str, channels: int) -> nn.Module:
    """Make a norm by name.

    Args:
        name: ``"batch"`` takes statistics of the whole batch, even with several processes
            (``common.distributed.wrap``); ``"group"`` takes them per sample over groups of about 16 channels;
            ``"frozen"`` is batch norm with loaded statistics.
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
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, not {name!r}.")
    return makers[name](channels)


def _groups(channels: int) -> int:
    """Largest number of groups, up to 32, of at least 2 channels each: a single value has no spread."""
    return max(number for number in range(1, 33) if channels % number == 0 and channels // number >= min(2, channels))
