"""Dice and cross-entropy with their gradient: piece by piece, against MONAI's one-hot truth of the whole batch."""

from __future__ import annotations

import torch
from monai.losses import DiceCELoss
from timing import Row, assert_close, compare

from common.losses import DiceCrossEntropy


def rows(quick: bool, device: torch.device) -> list[Row]:
    size = (16, 16, 16) if quick else (64, 80, 64)
    return [_row(classes, size, layout, device) for classes in (5, 35) for layout in ("row-major", "channels_last_3d")]


def _row(classes: int, size: tuple[int, ...], layout: str, device: torch.device) -> Row:
    logits = torch.randn(2, classes, *size, device=device)
    if layout == "channels_last_3d":
        logits = logits.to(memory_format=torch.channels_last_3d)
    logits.requires_grad_()
    label = torch.randint(classes, (2, 1, *size), device=device).float()
    losses = DiceCELoss(to_onehot_y=True, softmax=True), DiceCrossEntropy(include_background=True)
    results = []
    for loss in losses:
        results.append([value := loss(logits, label), *torch.autograd.grad(value, logits)])
    for monai, ours in zip(*results, strict=True):
        assert_close(ours, monai, 1e-4)
    name = f"Dice + cross-entropy, {classes} classes, 2 x {'x'.join(map(str, size))}, {layout} (baseline: DiceCELoss)"
    baseline, ours = (lambda loss=loss: torch.autograd.grad(loss(logits, label), logits) for loss in losses)
    return compare(name, baseline, ours, 5)
