from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange

__all__ = ["patchify", "unpatchify"]


def patchify(image: torch.Tensor, patch_size: Sequence[int]) -> torch.Tensor:
    """Cut an image (B, C, D, H, W) into patches (B, L, p*q*r*C), in row-major order of the patch grid."""
    p, q, r = patch_size
    return rearrange(image, "b c (d p) (h q) (w r) -> b (d h w) (p q r c)", p=p, q=q, r=r)


def unpatchify(patches: torch.Tensor, grid: Sequence[int], patch_size: Sequence[int]) -> torch.Tensor:
    """Inverse of ``patchify``: patches (B, L, p*q*r*C) of a ``grid`` of L patches -> image (B, C, D, H, W)."""
    (d, h, w), (p, q, r) = grid, patch_size
    return rearrange(patches, "b (d h w) (p q r c) -> b c (d p) (h q) (w r)", d=d, h=h, w=w, p=p, q=q, r=r)
