from __future__ import annotations

import pytest
import torch
from monai.losses import DiceCELoss

from common.losses import DiceCrossEntropy


@pytest.mark.parametrize("include_background", [False, True])
def test_of_the_voxels_that_count(include_background):
    """As MONAI's of the volume before it was padded, in value and gradient; none for the padding."""
    torch.manual_seed(0)
    inner = torch.randn(2, 3, 4, 5, 6, requires_grad=True)
    label = torch.randint(3, (2, 1, 4, 5, 6)).float()
    monai = DiceCELoss(to_onehot_y=True, softmax=True, include_background=include_background)(inner, label)
    monai.backward()
    for width in (0, 2):
        padded = torch.nn.functional.pad(inner.detach(), [width] * 6, value=3.0).requires_grad_()
        loss = DiceCrossEntropy(include_background)(padded, torch.nn.functional.pad(label, [width] * 6, value=-1))
        torch.testing.assert_close(loss, monai.detach())
        loss.backward()
        expected = torch.nn.functional.pad(inner.grad, [width] * 6)
        torch.testing.assert_close(padded.grad, expected)
        assert not padded.grad[expected == 0].any()


def test_where_no_voxel_counts():
    logits = torch.randn(1, 2, 3, 3, 3, requires_grad=True)
    loss = DiceCrossEntropy()(logits, torch.full((1, 1, 3, 3, 3), -1.0))
    loss.backward()
    assert loss.isfinite() and not logits.grad.any()


def test_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        loss = DiceCrossEntropy()(torch.randn(1, 2, 2, 2, 2).bfloat16(), torch.zeros(1, 1, 2, 2, 2))
    assert loss.dtype == torch.float32
