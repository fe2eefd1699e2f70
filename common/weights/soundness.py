from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["refuse_unsound"]

COUNTS = ("num_batches_tracked", "relative_position_index")
"""Ends of the names of tensors that are integers in our networks."""


def refuse_unsound(
    path: str | os.PathLike, state: Mapping[str, Any], target: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Refuse tensors that would load without an error but make a network compute nonsense.

    Args:
        path: the file of the tensors, for the error.
        state: the state to load; values that are not tensors are skipped.
        target: tensors of the network. Without it, all must be floats except known counters and indices.

    Raises:
        ValueError: values are NaN or infinite, or are integers, booleans or complex numbers instead of floats.
    """
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor):
            continue
        own = None if target is None else target.get(name)
        floats = not name.endswith(COUNTS) if target is None else own is not None and own.is_floating_point()
        if floats and not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(
                f"{path}: {name} holds values of type {kind}, but the network has floats; write the file again from "
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
