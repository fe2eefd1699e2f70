"""Class maps brought to the image's grid, with the gradient: products with matrices against torch's own kernels.

Then the same in forward and backward passes of Medical Transformer (fine-tuning to masks) and Med3D (pre-training), in
float32. Freed memory is kept, as the bundles do on a CPU: otherwise both sides mostly wait for new pages. On a GPU both
sides are the same, so there is nothing to measure.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from unittest import mock

import torch
from timing import Row, assert_close, compare
from torch import nn
from torch.nn import functional as F

from common.allocator import keep_freed_memory
from common.interpolation import LINEAR
from common.losses import DiceCrossEntropy
from common.networks import DilatedResNet, MultiBranchNet, MultiViewEncoder, MultiViewSegmenter, to_channels_last
from common.networks.resize import resize_linear

CASES = {  # of the fine-tuned nets and of pre-training with 33 structures and background
    "Medical Transformer, a plane's finest maps": ((2, 5, 80, 20, 26), (80, 80, 104)),
    "Med3D, 34 classes": ((4, 34, 6, 8, 6), (48, 64, 48)),
    "TransSeg": ((16, 3, 48, 48), (96, 96)),
}
QUICK = {"a small map": ((1, 2, 3, 4, 5), (3, 8, 10))}


def rows(quick: bool, device: torch.device) -> list[Row]:
    if device.type != "cpu":
        return []
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # keeping memory holds for a whole process
        return pool.apply(_rows, (quick, torch.get_num_threads()))


def _rows(quick: bool, threads: int) -> list[Row]:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    keep_freed_memory(True)
    views, crops = ((2, 20, 24, 22), (2, 16, 24, 16)) if quick else ((2, 80, 104, 80), (4, 48, 64, 48))
    return [
        *(_map(name, *case) for name, case in (QUICK if quick else CASES).items()),
        _step("Medical Transformer", "multi_view", MultiViewSegmenter(MultiViewEncoder(), 5), 5, views),
        _step("Med3D", "med3d", MultiBranchNet(DilatedResNet(10, width=16), [34]), 34, crops),
    ]


def with_torchs_kernel(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return F.interpolate(x.float(), size=tuple(size), mode=LINEAR[len(size)], align_corners=False)


def _map(name: str, shape: tuple[int, ...], size: tuple[int, ...]) -> Row:
    low = torch.randn(shape, requires_grad=True)
    gradient = torch.randn(*shape[:2], *size)

    def run(function):
        return torch.autograd.grad(function(low, size), low, gradient)[0]

    assert_close(run(resize_linear), run(with_torchs_kernel), 1e-3)
    of, to = ("x".join(map(str, grid)) for grid in (shape[2:], size))
    name = f"{name}: {shape[0]} x {shape[1]} x {of} to {to} (baseline: torch's kernel)"
    return compare(name, lambda: run(with_torchs_kernel), lambda: run(resize_linear), 5)


def _step(name: str, module: str, net: nn.Module, classes: int, shape: tuple[int, ...]) -> Row:
    net = to_channels_last(net, torch.device("cpu"))
    image = torch.rand(shape[0], 1, *shape[1:])
    label = torch.randint(0, classes, image.shape)
    loss, parameters = DiceCrossEntropy(), list(net.parameters())

    def ours():
        logits = net(image)
        return logits.detach(), torch.autograd.grad(loss(logits, label), parameters, allow_unused=True)[0]

    def baseline():
        with mock.patch(f"common.networks.{module}.resize_linear", with_torchs_kernel):
            return ours()

    net.eval()  # without dropout, so both sides compute the same
    for one, other in zip(ours(), baseline(), strict=True):
        assert_close(one, other, 1e-3)
    net.train()
    title = (
        f"{name}, forward and backward, {shape[0]} x {'x'.join(map(str, shape[1:]))} (baseline: torch's kernel in it)"
    )
    return compare(title, baseline, ours, 3)
