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
"""Tables of positions, absolute or relative, and what joins the tokens as it is: a class token, a plane's vector."""


def parameter_groups(
    network: nn.Module,
    encoder: nn.Module | None,
    learning_rate: float,
    weight_decay: float = 0.0,
    layer_decay: float = 1.0,
    rates: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Parameters of a network in groups for an optimiser: the encoder by depth, the decoder, the head.

    The head and the decoder have the rate ``learning_rate``, the encoder's last layer that times ``layer_decay``, each
    layer before it once more so (Clark et al., ELECTRA, ICLR 2020; Bao et al., BEiT, ICLR 2022). The layers of an
    encoder are those of ``common.networks.encoder_layers``: blocks of a plain transformer, stages of a pyramid. Norms,
    biases, positions and all other vectors do not decay.

    Args:
        network: the network, wrapped by DDP or not; each of its parameters is in one group.
        encoder: the encoder, a part of it or a view on it. What goes along in its file without being of its layers, as
            the decoder of a U-Net, is a decoder here. None for a network without one, which is a decoder and a head.
        learning_rate: of the head and the decoder.
        weight_decay: of what decays.
        layer_decay: factor of the rate from layer to layer, from 0, exclusive, to 1.
        rates: factors of ``learning_rate`` of the parts ``encoder``, ``decoder`` and ``head``; 1 where there is none.

    Returns:
        groups with ``params``, ``lr``, ``weight_decay``, ``part`` (encoder, decoder or head) and ``depth`` (of a layer
        of the encoder, from 0; else None), without empty ones.

    Raises:
        ValueError: ``layer_decay`` is out of range, or below 1 for an encoder that does not name its layers; the
            encoder is not a part of the network; ``rates`` names a part that is not known or that the network lacks.
    """
    if isinstance(network, DistributedDataParallel):
        network = network.module
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay is {layer_decay}; it has to be above 0 and at most 1.")
    if layer_decay < 1 and not hasattr(encoder, "layer_names"):
        raise ValueError(
            f"layer_decay is {layer_decay}, but {type(encoder).__name__} does not say which its layers are: give it "
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
            f"({type(network).__name__}): `encoder` has to be the encoder of the net that is trained."
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
    """What does not decay: parameters of norms, of one axis or none, and of positions."""
    norms = [p for module in network.modules() if isinstance(module, NORMS) for p in module.parameters(recurse=False)]
    others = [p for name, p in network.named_parameters() if p.ndim <= 1 or POSITIONS.search(name)]
    return norms + others


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
