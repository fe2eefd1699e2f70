"""Token contrast, forward and backward: rows of a matrix product against the broadcast cosines of MONAI's loss."""

from __future__ import annotations

import torch
from monai.losses import ContrastiveLoss
from timing import Row, assert_close, compare

from common.losses import TokenContrastiveLoss


def rows(quick: bool, device: torch.device) -> list[Row]:
    cases = [(16, 8)] if quick else [(256, 768), (256, 1536)]
    return [_row(tokens, channels, 1 if quick else 3, device) for tokens, channels in cases]


def _row(tokens: int, channels: int, repeats: int, device: torch.device) -> Row:
    """Use a weight of 1, the only one that MONAI's loss has; the cost is the same."""
    views = torch.randn(2, 2, tokens // 2, channels, device=device, requires_grad=True)
    baseline, ours = ContrastiveLoss(temperature=0.5), TokenContrastiveLoss(weight=0.0)

    def monai() -> torch.Tensor:
        return baseline(*views.flatten(1, 2))

    def rowwise() -> torch.Tensor:
        return ours({"view1": views[0], "view2": views[1]})

    assert_close(rowwise(), monai(), 1e-5)

    def step(loss):
        views.grad = None
        loss().backward()

    name = f"token contrast, 2 x {tokens} tokens of {channels} (baseline: monai.losses.ContrastiveLoss)"
    return compare(name, lambda: step(monai), lambda: step(rowwise), repeats)
