from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["refuse_unsound"]

COUNTS = ("num_batches_tracked", "relative_position_index")
"""Ends of the names of tensors that are integers in the networks at hand."""


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
