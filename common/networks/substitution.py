"""Let parts of a network compute the same function in another way."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

__all__ = ["is_recorded", "substitute"]


def substitute(network: nn.Module, classes: Mapping[type[nn.Module], type[nn.Module]]) -> nn.Module:
    """Give modules another class, in place. Names in the state dict stay.

    Args:
        network: any.
        classes: class of a module -> the subclass that it gets. Modules of other subclasses stay as they are.

    Returns:
        the network.
    """
    for module in network.modules():
        if type(module) in classes:
            module.__class__ = classes[type(module)]
    return network


def is_recorded() -> bool:
    """Whether torch records operations, to trace or compile them: then they have to be its own."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()
