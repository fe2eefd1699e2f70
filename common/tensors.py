"""Tensors without MONAI's metadata."""

from __future__ import annotations

from typing import Any

from monai.data import MetaTensor

__all__ = ["plain_tensor"]


def plain_tensor(value: Any) -> Any:
    """A ``MetaTensor``'s values as a plain tensor of the same memory and graph; anything else as it is.

    MONAI's ``convert_to_tensor`` copies what is not contiguous, and makes tensors of arrays and numbers.
    """
    return value.as_tensor() if isinstance(value, MetaTensor) else value
