from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["refuse_gaps", "refuse_unsound"]

COUNTS = ("num_batches_tracked", "relative_position_index")
"""Ends of the names of tensors that are integers in the networks at hand."""

BLOCK = re.compile(r"(vit\.blocks|swin\.layers\d\.0\.blocks|stages\.\d+|layers)\.(\d+)\.(.+)")
"""A tensor of a transformer's block: where the block stands, its number, and the part."""
_BOTH = ("weight", "bias")
_BLOCK_PARTS = ("attn.qkv.weight", *(f"{part}.{end}" for part in ("norm1", "norm2") for end in _BOTH))
_MLP = tuple(f"mlp.linear{number}.{end}" for number in (1, 2) for end in _BOTH)
_WINDOWS = (*_BLOCK_PARTS, *_MLP, "attn.proj.weight", "attn.proj.bias", "attn.relative_position_bias_table")
_LAYERS = (
    *(f"attention.{part}_proj.weight" for part in "qkvo"),
    *(f"{part}.{end}" for part in ("layernorm_before", "layernorm_after", "mlp.fc1", "mlp.fc2") for end in _BOTH),
)
PARTS = {
    "vit": (*_BLOCK_PARTS, *_MLP, "attn.out_proj.weight", "attn.out_proj.bias"),
    "swin": _WINDOWS,
    "stages": _WINDOWS,
    "layers": _LAYERS,
}
"""What each block has, by the first part of its name."""
MERGING = ("reduction.weight", "norm.weight", "norm.bias")


def refuse_gaps(state: Mapping[str, torch.Tensor]) -> None:
    """Refuse converted weights of which a part of the network is not there, and would stay as it was drawn.

    Raises:
        ValueError: a block lacks a tensor that each has, or that another block has; blocks, stages or patch mergings
            are missing, or there are mergings of no stage; a joint projection does not hold query, key and value.
    """
    blocks: dict[str, dict[int, set[str]]] = {}
    for name in state:
        found = BLOCK.match(name)
        if found:
            blocks.setdefault(found[1], {}).setdefault(int(found[2]), set()).add(found[3])
            if found[3] == "attn.qkv.weight" and state[name].shape[0] != 3 * state[name].shape[1]:
                raise ValueError(
                    f"{name} has the shape {tuple(state[name].shape)}, which is not of query, key and value"
                )
    if not blocks:  # not a transformer
        return
    family = next(iter(blocks)).partition(".")[0]
    parts = set(PARTS[family]).union(*(has for numbered in blocks.values() for has in numbered.values()))
    wanted = [
        f"{place}.{number}.{part}"
        for place, numbered in sorted(blocks.items())
        for number in range(1 + max(numbered))
        for part in sorted(parts)
    ]
    if family == "swin":
        wanted += [f"swin.layers{stage}.0.blocks.0.norm1.weight" for stage in range(1, 5)]
        wanted += [f"swin.layers{stage}.0.downsample.{part}" for stage in range(1, 5) for part in MERGING]
    elif family == "stages":
        count = 1 + max(int(place.split(".")[1]) for place in blocks)
        wanted += [f"stages.{stage}.0.norm1.weight" for stage in range(count)]
        wanted += [f"mergings.{stage}.{part}" for stage in range(count - 1) for part in MERGING]
        odd = [name for name in state if name.startswith("mergings.") and name not in wanted]
        if odd:
            raise ValueError(f"it holds {odd[0]}, and {count} stages have no such merging of patches")
    missing = [name for name in wanted if name not in state]
    if missing:
        raise ValueError(
            f"{len(missing)} tensors of its blocks are not there, as we call them {', '.join(missing[:3])}"
        )


def refuse_unsound(
    path: str | os.PathLike, state: Mapping[str, Any], target: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Refuse tensors that load without an error and make a network that computes nonsense.

    Args:
        path: the file that the tensors are from, for the sentence.
        state: what is to be loaded; what is no tensor is passed over.
        target: tensors of the network. Without it, all have to be floats but for the counters and indices that networks
            are known to hold.

    Raises:
        ValueError: values that are NaN or infinite, or integers, booleans or complex numbers where floats belong.
    """
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor):
            continue
        own = None if target is None else target.get(name)
        floats = not name.endswith(COUNTS) if target is None else own is not None and own.is_floating_point()
        if floats and not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(
                f"{path}: {name} holds values of type {kind}, where the network has floats; write the file again from "
                "sound weights."
            )
        if tensor.is_floating_point() or tensor.is_complex():
            # Types of one byte have no isfinite.
            values = tensor.float() if tensor.dtype.itemsize == 1 else tensor
            if not bool(torch.isfinite(values).all()):
                raise ValueError(
                    f"{path}: {name} holds values that are not finite (NaN or infinite); write the file again from "
                    "sound weights."
                )
