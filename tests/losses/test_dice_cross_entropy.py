from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from monai.losses import DiceCELoss

from common.losses import DiceCrossEntropy, dice_cross_entropy


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """So that these small images have several."""
    monkeypatch.setattr(dice_cross_entropy, "_split", lambda voxels: voxels.split(50, dim=1))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("include_background", [False, True])
def test_of_the_voxels_that_count(include_background, batch, squared, layout):
    """As MONAI's of the volume before it was padded, in value and gradient; none for the padding."""
    torch.manual_seed(0)
    inner = torch.randn(2, 3, 4, 5, 6, requires_grad=True)
    label = torch.randint(3, (2, 1, 4, 5, 6)).float()
    kind = {
        "include_background": include_background,
        "squared_pred": squared,
        "batch": batch,
        "smooth_nr": 0.1,
        "smooth_dr": 1e-6,
    }
    monai = DiceCELoss(to_onehot_y=True, softmax=True, **kind)(inner, label)
    (3 * monai).backward()
    for width in (0, 2):
        padded = torch.nn.functional.pad(inner.detach(), [width] * 6, value=3.0)
        padded = padded.contiguous(memory_format=layout).requires_grad_()
        loss = DiceCrossEntropy(**kind)(padded, torch.nn.functional.pad(label, [width] * 6, value=-1))
        torch.testing.assert_close(loss, monai.detach())
        (3 * loss).backward()
        expected = torch.nn.functional.pad(inner.grad, [width] * 6)
        torch.testing.assert_close(padded.grad, expected)
        assert not padded.grad[expected == 0].any()


@pytest.mark.parametrize("squared", [False, True])
def test_the_gradient_is_that_of_finite_differences(squared):
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    label = torch.randint(-1, 4, (2, 1, 3, 5, 6))
    assert torch.autograd.gradcheck(lambda scores: DiceCrossEntropy(squared_pred=squared)(scores, label), logits)


def test_axes_in_another_order():
    logits, label = torch.randn(2, 3, 4, 5, 6, requires_grad=True), torch.randint(3, (2, 1, 6, 5, 4))
    losses = DiceCrossEntropy(True), DiceCELoss(to_onehot_y=True, softmax=True)
    ours, monai = (torch.autograd.grad(loss(logits.transpose(2, 4), label), logits)[0] for loss in losses)
    torch.testing.assert_close(ours, monai)


def test_in_two_dimensions_and_of_meta_tensors():
    logits, label = torch.randn(2, 3, 7, 9), torch.randint(3, (2, 1, 7, 9)).float()
    loss = DiceCrossEntropy(True)(MetaTensor(logits), MetaTensor(label))
    assert type(loss) is torch.Tensor
    torch.testing.assert_close(loss, DiceCELoss(to_onehot_y=True, softmax=True)(logits, label))


def test_where_no_voxel_counts():
    logits = torch.randn(1, 2, 3, 3, 3, requires_grad=True)
    loss = DiceCrossEntropy()(logits, torch.full((1, 1, 3, 3, 3), -1.0))
    loss.backward()
    assert loss.isfinite() and not logits.grad.any()


def test_float32_under_autocast():
    logits = torch.randn(1, 2, 2, 2, 2).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = DiceCrossEntropy()(logits, torch.zeros(1, 1, 2, 2, 2))
    loss.backward()
    assert loss.dtype == torch.float32 and logits.grad.dtype == torch.bfloat16 and logits.grad.any()


@pytest.mark.parametrize("wrong", [3.0, -2.0])
def test_a_label_that_is_no_class_is_refused(wrong):
    with pytest.raises(ValueError, match="for 3 classes"):
        DiceCrossEntropy()(torch.randn(1, 3, 2, 2, 2), torch.full((1, 1, 2, 2, 2), wrong))
    with pytest.raises(ValueError, match="shape"):
        DiceCrossEntropy()(torch.randn(1, 3, 2, 2, 2), torch.zeros(1, 1, 2, 2, 3))
