from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import nn

__all__ = ["encoder_layers", "layer_modules"]


def encoder_layers(encoder: nn.Module) -> list[dict[str, nn.Parameter]]:
    """Parameters of an encoder by depth: one dict by name for each layer, in the order of the forward pass.

    ``layer_names`` defines the layers of an encoder: regular expressions for the beginnings of names, in the order of
    the forward pass. An expression with a group for a number names several layers, in the order of the numbers. A name
    that no expression matches does not belong to the encoder, even if its file includes it, such as the decoder of a
    U-Net. An encoder without ``layer_names`` is one layer.
    """
    layers: dict[tuple[int, ...], dict[str, nn.Parameter]] = {}
    for name, parameter in encoder.named_parameters():
        place = _place(encoder, name)
        if place is not None:
            layers.setdefault(place, {})[name] = parameter
    return [layers[place] for place in sorted(layers)]


def layer_modules(encoder: nn.Module) -> Iterable[nn.Module]:
    """All modules of the layers of an encoder, except modules that hold more than the encoder."""
    return (module for name, module in encoder.named_modules() if _place(encoder, f"{name}.") is not None)


def _place(encoder: Any, name: str) -> tuple[int, ...] | None:
    names = getattr(encoder, "layer_names", ("",))
    for number, pattern in enumerate(names):
        match = re.match(pattern, name)
        if match is not None:
            return (number, *map(int, match.groups()))
    return None
