"""Contrastive loss, forward and backward: matrix product and log-sum-exp against MONAI's broadcast form."""

from __future__ import annotations

import torch
from monai.losses import ContrastiveLoss
from timing import Row, assert_close, compare

from common.losses import NTXentLoss


def rows(quick: bool, device: torch.device) -> list[Row]:
    batch, repeats = (8, 1) if quick else (128, 9)
    return [_row(batch, channels, repeats, device) for channels in (256, 384)]


def _row(batch: int, channels: int, repeats: int, device: torch.device) -> Row:
    views = torch.randn(2, batch, channels, device=device, requires_grad=True)
    baseline, ours = ContrastiveLoss(temperature=0.5), NTXentLoss(temperature=0.5)
    assert_close(ours(*views), baseline(*views), 1e-5)

    def step(loss):
        views.grad = None
        loss(*views).backward()

    name = f"contrastive loss, 2 x {batch} vectors of {channels} (baseline: monai.losses.ContrastiveLoss)"
    return compare(name, lambda: step(baseline), lambda: step(ours), repeats)
