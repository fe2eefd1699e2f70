from __future__ import annotations

import torch

__all__ = ["PLANES", "from_slices", "to_slices"]

PLANES = ("sagittal", "coronal", "axial")
"""The three planes, in the order of the axes across them: x (left to right), y (back to front), z (up)."""

_ORDER = {"sagittal": (0, 1, 2, 4, 3), "coronal": (0, 1, 3, 2, 4), "axial": (0, 1, 4, 2, 3)}
_INVERSE = {plane: tuple(order.index(axis) for axis in range(5)) for plane, order in _ORDER.items()}


def to_slices(volume: torch.Tensor, plane: str) -> torch.Tensor:
    """Slices of a volume (B, C, X, Y, Z) across one axis, (B, C, N, H, W), as a view.

    Sagittal slices are (Z, Y) images, N = X; coronal ones (X, Z), N = Y; axial ones (X, Y), N = Z. The published code
    of Jun et al. (Medical Transformer) does the same.
    """
    return volume.permute(_ORDER[plane])


def from_slices(slices: torch.Tensor, plane: str) -> torch.Tensor:
    """The inverse of ``to_slices``."""
    return slices.permute(_INVERSE[plane])
