"""Instance norm with its gradient in channels_last_3d: ours against torch's group norm with one channel per group."""

from __future__ import annotations

import torch
from timing import Row, assert_close, compare
from torch import nn
from torch.nn import functional as F

from common.networks import to_channels_last


def rows(quick: bool, device: torch.device) -> list[Row]:
    cases = [(8, 16)] if quick else [(12, 64), (32, 64), (64, 32)]
    return [
        _row(channels, side, dtype, device) for channels, side in cases for dtype in (torch.float32, torch.bfloat16)
    ]


def _row(channels: int, side: int, dtype: torch.dtype, device: torch.device) -> Row:
    norm = to_channels_last(nn.InstanceNorm3d(channels, affine=True), device)
    image = torch.randn(2, channels, side, side, side, device=device, dtype=dtype)
    image = image.to(memory_format=torch.channels_last_3d).requires_grad_()
    gradient = torch.randn_like(image)

    def run(function):
        return torch.autograd.grad(function(image), (image, *norm.parameters()), gradient)

    def baseline():
        return run(lambda x: F.group_norm(x, channels, norm.weight, norm.bias, norm.eps))

    # by voxel; the sums over all of them are of another order of magnitude
    assert_close(run(norm)[0], baseline()[0], 1e-4 if dtype == torch.float32 else 5e-2)
    name = f"instance norm, 2 x {channels} x {side}^3, {str(dtype)[6:]} (baseline: group norm)"
    return compare(name, baseline, lambda: run(norm), 5)
