"""Class maps brought to the image's grid, with the gradient: products with matrices against torch's own kernels."""

from __future__ import annotations

import torch
from timing import Row, assert_close, compare
from torch.nn import functional as F

from common.networks.resize import MODES, resize_linear

CASES = {  # of the fine-tuned nets and of pre-training with 33 structures and background
    "Medical Transformer, a plane's finest maps": ((2, 5, 80, 20, 26), (80, 80, 104)),
    "Med3D, 34 classes": ((4, 34, 6, 8, 6), (48, 64, 48)),
    "TransSeg": ((16, 3, 48, 48), (96, 96)),
}
QUICK = {"a small map": ((1, 2, 3, 4, 5), (3, 8, 10))}


def rows(quick: bool, device: torch.device) -> list[Row]:
    return [_row(name, *case, device) for name, case in (QUICK if quick else CASES).items()]


def _row(name: str, shape: tuple[int, ...], size: tuple[int, ...], device: torch.device) -> Row:
    low = torch.randn(shape, device=device, requires_grad=True)
    gradient = torch.randn(*shape[:2], *size, device=device)

    def run(function):
        return torch.autograd.grad(function(low), low, gradient)[0]

    def baseline():
        return run(lambda x: F.interpolate(x, size=size, mode=MODES[len(size)], align_corners=False))

    def ours():
        return run(lambda x: resize_linear(x, size))

    assert_close(ours(), baseline(), 1e-3)
    of, to = ("x".join(map(str, grid)) for grid in (shape[2:], size))
    return compare(f"{name}: {shape[0]} x {shape[1]} x {of} to {to} (baseline: torch's kernel)", baseline, ours, 5)
