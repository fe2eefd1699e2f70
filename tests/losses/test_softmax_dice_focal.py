from __future__ import annotations

import pytest
import torch

from common.losses import SoftmaxDiceFocalLoss


def by_hand(logits: torch.Tensor, label: torch.Tensor, gamma: float) -> tuple[float, float]:
    """Dice and focal loss, voxel by voxel; the focal loss is the mean over voxels and classes."""
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
    return float(dice / (batch * classes)), float(focal / (voxels * classes))


def focal_of_the_pinned_build(logits: torch.Tensor, label: torch.Tensor, gamma: float = 2.0) -> torch.Tensor:
    """What MONAI's weekly build 0.6.dev2127, which the published code pins, does with a label of one channel.

    Its ``FocalLoss`` takes the log-softmax, masks it by the one-hot label, means over the pixels, which leaves a number
    a sample and class, and then over both.
    """
    flat = logits.flatten(2)
    log_p = flat.log_softmax(1)
    truth = torch.zeros_like(flat).scatter_(1, label.flatten(2), 1.0)
    of_sample_and_class = (-((1 - log_p.exp()) ** gamma) * truth * log_p).mean(-1)
    assert of_sample_and_class.shape == logits.shape[:2]
    return of_sample_and_class.mean()


@pytest.mark.parametrize("classes", [2, 5, 14])
def test_the_focal_part_is_that_of_the_pinned_build(classes):
    torch.manual_seed(classes)
    logits = torch.randn(2, classes, 6, 7, dtype=torch.float64)
    label = torch.randint(classes, (2, 1, 6, 7))
    made = SoftmaxDiceFocalLoss(lambda_dice=0.0)(logits, label)
    torch.testing.assert_close(made.double(), focal_of_the_pinned_build(logits, label), rtol=1e-5, atol=1e-7)


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


def test_without_exponent_the_focal_part_is_cross_entropy_over_the_classes():
    torch.manual_seed(0)
    logits, label = torch.randn(2, 4, 6, 6, 1), torch.randint(4, (2, 1, 6, 6, 1))
    made = SoftmaxDiceFocalLoss(0.0, lambda_dice=0.0)(logits, label)
    torch.testing.assert_close(made, torch.nn.functional.cross_entropy(logits, label[:, 0]) / 4)


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
