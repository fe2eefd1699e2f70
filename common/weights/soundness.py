from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["refuse_blank", "refuse_unsound"]

COUNTS = ("num_batches_tracked", "relative_position_index")
"""Ends of the names of tensors that are integers in our networks."""

TABLES = re.compile(r"posit|bias_table|token|query|mask")
"""Names of tensors of several axes that are no kernels or matrices; training may leave them at 0."""


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


def refuse_blank(path: str | os.PathLike, state: Mapping[str, Any]) -> list[str]:
    """Refuse weights that were never drawn or learnt: kernels and matrices of one value each.

    Args:
        path: the file of the tensors, for the error.
        state: what would be loaded.

    Returns:
        Names of the single kernels and matrices that are 0 throughout, for a warning.

    Raises:
        ValueError: each of them has a single value all over, such as 0.
    """
    kernels = {
        name: tensor
        for name, tensor in state.items()
        if isinstance(tensor, torch.Tensor)
        and tensor.is_floating_point()
        and tensor.ndim > 1
        and max(tensor.shape[0], tensor[0].numel()) > 1
        and not TABLES.search(name)
    }
    first = {name: tensor.flatten()[0] for name, tensor in kernels.items()}
    blank = [name for name, tensor in kernels.items() if bool((tensor == first[name]).all())]
    if kernels and len(blank) == len(kernels):
        raise ValueError(
            f"{path}: all {len(blank)} kernels and matrices have one value all over, such as "
            f"{float(first[blank[0]]):g} in {blank[0]}: it holds no learnt weights; take another copy of it."
        )
    return [name for name in blank if float(first[name]) == 0]
