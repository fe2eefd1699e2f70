from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DistributedDataParallel

from ..networks.encoder_layers import encoder_layers
from ..networks.norms import FrozenBatchNorm

__all__ = ["decay_groups", "parameter_groups"]

PARTS = ("encoder", "decoder", "head")
HEAD = re.compile(
    r"(?:out|out_\d+|out_blocks|final|conv_final|output_block|deep_supervision_heads|classifier|head"
    r"|decoder\.seg_layers|decoder\.classifier)\."
)
"""Names of the layers that turn features into classes or numbers, in MONAI's networks and the collection's."""
NORMS = (_NormBase, FrozenBatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
POSITIONS = re.compile(r"position|\bpos_embed|cls_token|\btransformer\.segments\b")
"""Tables of positions, absolute or relative, and vectors that join the tokens: a class token, a plane's vector."""


def parameter_groups(
    network: nn.Module,
    encoder: nn.Module | None,
    learning_rate: float,
    weight_decay: float = 0.0,
    layer_decay: float = 1.0,
    rates: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Split the parameters of a network into groups for an optimiser: the encoder by depth, the decoder, the head.

    Head and decoder get the rate ``learning_rate``. The encoder's last layer gets that rate times ``layer_decay``, and
    each earlier layer gets one more factor (Clark et al., ELECTRA, ICLR 2020; Bao et al., BEiT, ICLR 2022). The layers
    of an encoder are those of ``common.networks.encoder_layers``: blocks of a plain transformer, stages of a pyramid.
    Norms, biases, positions and all other vectors do not decay.

    Args:
        network: the network, wrapped by DDP or not; each of its parameters is in one group.
        encoder: the encoder, a part of it or a view on it. Parts of its file that are not among its layers, such as the
            decoder of a U-Net, count as decoder. None for a network without an encoder: it has only decoder and head.
        learning_rate: for the head and the decoder.
        weight_decay: for the parameters that decay.
        layer_decay: factor of the rate from layer to layer, from 0, exclusive, to 1.
        rates: factors of ``learning_rate`` for the parts ``encoder``, ``decoder`` and ``head``; 1 by default.

    Returns:
        groups with ``params``, ``lr``, ``weight_decay``, ``part`` (encoder, decoder or head) and ``depth`` (of an
        encoder layer, from 0; else None). Empty groups are left out.

    Raises:
        ValueError: ``layer_decay`` is out of range, or below 1 for an encoder that does not name its layers; the
            encoder is not part of the network; ``rates`` names a part that is unknown or missing in the network.
    """
    if isinstance(network, DistributedDataParallel):
        network = network.module
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay is {layer_decay}; it must be above 0 and at most 1.")
    if layer_decay < 1 and not hasattr(encoder, "layer_names"):
        raise ValueError(
            f"layer_decay is {layer_decay}, but {type(encoder).__name__} does not name its layers: give it "
            "`layer_names` (common.networks.encoder_layers), or set layer_decay to 1."
        )
    layers = [] if encoder is None else encoder_layers(encoder)
    depths = {id(parameter): depth for depth, layer in enumerate(layers) for parameter in layer.values()}
    still = {id(parameter) for part in (network, encoder) if part is not None for parameter in _vectors(part)}
    groups: dict[tuple[int, int, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        depth = depths.pop(id(parameter), None)
        part = "encoder" if depth is not None else "head" if HEAD.match(name) else "decoder"
        decays = id(parameter) not in still
        groups.setdefault((PARTS.index(part), depth or 0, not decays), []).append(parameter)
    if depths:
        raise ValueError(
            f"{len(depths)} parameters of the encoder ({type(encoder).__name__}) are not among those of the network "
            f"({type(network).__name__}): `encoder` must be the encoder of the net in training."
        )
    found = {PARTS[part] for part, _, _ in groups}
    for part in rates or {}:
        if part not in found:
            known = ", ".join(part for part in PARTS if part in found)
            raise ValueError(f"rates names {part!r}; the parts of {type(network).__name__} are {known}.")
    result = []
    for place, depth, without in sorted(groups):
        part = PARTS[place]
        rate = learning_rate * (rates or {}).get(part, 1.0)
        if part == "encoder":
            rate *= layer_decay ** (len(layers) - depth)
        result.append(
            {
                "params": groups[place, depth, without],
                "lr": rate,
                "weight_decay": 0.0 if without else weight_decay,
                "part": part,
                "depth": depth if part == "encoder" else None,
            }
        )
    return result


def _vectors(network: nn.Module) -> list[nn.Parameter]:
    """Parameters that do not decay: norms, positions, and those of one axis or none."""
    norms = [p for module in network.modules() if isinstance(module, NORMS) for p in module.parameters(recurse=False)]
    others = [p for name, p in network.named_parameters() if p.ndim <= 1 or POSITIONS.search(name)]
    return norms + others


def decay_groups(
    network: nn.Module, weight_decay: float, without: Sequence[str] = ("bias", "LayerNorm.weight")
) -> list[dict[str, Any]]:
    """Split parameters into two groups: without weight decay if the name contains a word of ``without``, else with.

    The default is that of TransSeg's published code, taken literally. Tables of relative positions are named
    ``..._bias_table`` and do not decay. The weights of BEiT's norms have other names, there and here, and do decay.
    """
    decaying: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        (others if any(part in name for part in without) else decaying).append(parameter)
    return [{"params": decaying, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
