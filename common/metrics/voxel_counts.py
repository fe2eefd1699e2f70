"""How many voxels masks have."""

from __future__ import annotations

import torch

__all__ = ["count_voxels"]

EXACT = 2**24
"""Up to here, float32 has every whole number."""


def count_voxels(masks: torch.Tensor) -> torch.Tensor:
    """Sum masks of zeros and ones (B, C, N, ...) over N: exact for any size, in float64.

    A sum with ``dtype=torch.float64`` first copies the masks, of which 33 of a whole scan are hundreds of megabytes.
    Here float32 counts as far as it is exact, and float64 adds up these counts.
    """
    parts = [part.sum(2, dtype=torch.float32) for part in masks.split(EXACT, 2)]
    return torch.stack(parts).sum(0, dtype=torch.float64)
