from __future__ import annotations

import pytest
import torch

from common.losses import SoftmaxDiceFocalLoss


def by_hand(logits: torch.Tensor, label: torch.Tensor, gamma: float) -> tuple[float, float]:
    """Dice and focal loss, voxel by voxel; the focal loss as MONAI 0.6 computes it for several channels."""
    batch, classes = logits.shape[:2]
    probability = logits.exp() / logits.exp().sum(1, keepdim=True)
    dice, focal, voxels = 0.0, 0.0, label[:, 0].numel()
    for b in range(batch):
        for c in range(classes):
            true = (label[b, 0] == c).double()
            overlap = (probability[b, c] * true).sum()
            dice += 1 - (2 * overlap + 1e-5) / (probability[b, c].sum() + true.sum() + 1e-5)
        for place in torch.cartesian_prod(*(torch.arange(n) for n in label.shape[2:])).tolist():
            p = probability[(b, int(label[(b, 0, *place)]), *place)]
            focal -= (1 - p) ** gamma * p.log()
    return float(dice / (batch * classes)), float(focal / voxels)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_is_dice_plus_focal_of_the_true_class(gamma):
    torch.manual_seed(0)
    logits, label = torch.randn(2, 3, 4, 5, 1, dtype=torch.float64), torch.randint(3, (2, 1, 4, 5, 1))
    dice, focal = by_hand(logits, label, gamma)
    made = SoftmaxDiceFocalLoss(gamma)(logits, label)
    assert float(made) == pytest.approx(dice + focal, abs=1e-5)
    assert float(SoftmaxDiceFocalLoss(gamma, 2.0, 0.5)(logits, label)) == pytest.approx(2 * dice + focal / 2, abs=1e-5)


def test_ignored_pixels_count_in_neither_part():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 6, 5, 1, dtype=torch.float64, requires_grad=True)
    label = torch.randint(3, (2, 1, 6, 5, 1))
    padded, loss = label.clone(), SoftmaxDiceFocalLoss()
    padded[:, :, 4:] = -1
    made = loss(logits, padded)
    torch.testing.assert_close(made, loss(logits[:, :, :4], label[:, :, :4]))
    made.backward()
    assert not logits.grad[:, :, 4:].any() and logits.grad[:, :, :4].all()
    assert torch.isfinite(loss(logits, torch.full_like(label, -1)))


def test_without_exponent_the_focal_part_is_cross_entropy():
    torch.manual_seed(0)
    logits, label = torch.randn(2, 4, 6, 6, 1), torch.randint(4, (2, 1, 6, 6, 1))
    made = SoftmaxDiceFocalLoss(0.0, lambda_dice=0.0)(logits, label)
    torch.testing.assert_close(made, torch.nn.functional.cross_entropy(logits, label[:, 0]))


def test_is_computed_in_float32_under_autocast():
    logits = torch.randn(1, 3, 4, 4, 1, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = SoftmaxDiceFocalLoss()(logits, torch.zeros(1, 1, 4, 4, 1))
    assert loss.dtype == torch.float32
    loss.backward()
    assert torch.isfinite(logits.grad).all()


def test_vanishes_at_the_target():
    label = torch.randint(3, (1, 1, 4, 4, 1))
    logits = 50.0 * torch.nn.functional.one_hot(label[:, 0], 3).movedim(-1, 1)
    assert float(SoftmaxDiceFocalLoss()(logits, label)) == pytest.approx(0, abs=1e-4)
