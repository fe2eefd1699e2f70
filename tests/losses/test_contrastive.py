import math

import pytest
import torch
from monai.losses import ContrastiveLoss

from common.losses import NTXentLoss


def slow_ntxent(view1, view2, temperature):
    """Chen et al. 2020, eq. (1), one pair at a time in double precision."""
    vectors = [v.double() / v.double().norm() for v in [*view1, *view2]]
    count = len(vectors)
    total = 0.0
    for a in range(count):
        positive = (a + count // 2) % count
        others = [torch.exp(vectors[a] @ vectors[b] / temperature) for b in range(count) if b != a]
        total -= torch.log(torch.exp(vectors[a] @ vectors[positive] / temperature) / sum(others))
    return total / count


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("batch, channels", [(1, 4), (2, 3), (5, 16), (16, 8)])
@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_equals_slow_reference_and_monai(batch, channels, temperature):
    view1, view2 = torch.randn(2, batch, channels)
    loss = NTXentLoss(temperature)(view1, view2)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(float(slow_ntxent(view1, view2, temperature)), abs=1e-5)
    assert loss.item() == pytest.approx(ContrastiveLoss(temperature)(view1, view2).item(), abs=1e-5)


def test_gradient_equals_monai():
    views = torch.randn(2, 6, 10)
    ours, theirs = views.clone().requires_grad_(), views.clone().requires_grad_()
    NTXentLoss()(*ours).backward()
    ContrastiveLoss()(*theirs).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-4)


def test_gradcheck():
    views = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: NTXentLoss()(*v), views)


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_identical_views_of_orthogonal_samples(batch, temperature):
    view = 3 * torch.eye(batch, 8)
    expected = math.log(math.exp(1 / temperature) + 2 * batch - 2) - 1 / temperature
    assert NTXentLoss(temperature)(view, view).item() == pytest.approx(expected, abs=1e-5)


def test_symmetric_and_scale_free():
    view1, view2 = torch.randn(2, 5, 6)
    loss = NTXentLoss()(view1, view2)
    torch.testing.assert_close(NTXentLoss()(view2, view1), loss)
    torch.testing.assert_close(NTXentLoss()(100 * view1, 0.01 * view2), loss)
    assert NTXentLoss()(view1, view2.flip(0)) != loss


def test_finite_at_a_small_temperature():
    view1, view2 = torch.randn(2, 8, 16)
    view2[0] = view1[0]
    views = torch.stack([view1, view2]).requires_grad_()
    assert not torch.isfinite(ContrastiveLoss(0.005)(*views))
    loss = NTXentLoss(0.005)(*views)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(views.grad).all()
    assert loss.item() == pytest.approx(float(slow_ntxent(view1, view2, 0.005)), rel=1e-5)


def test_float32_under_autocast_and_for_half_input():
    view1, view2 = torch.randn(2, 8, 16)
    expected = NTXentLoss(0.05)(view1, view2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(NTXentLoss(0.05)(view1, view2), expected)
    half = NTXentLoss(0.05)(view1.bfloat16(), view2.bfloat16())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, NTXentLoss(0.05)(view1.bfloat16().float(), view2.bfloat16().float()))


@pytest.mark.parametrize(
    "shape1, shape2", [((4, 8), (3, 8)), ((4, 8), (4, 7)), ((4, 8, 1), (4, 8, 1)), ((0, 8), (0, 8))]
)
def test_rejects_views_that_do_not_match(shape1, shape2):
    with pytest.raises(ValueError, match="two views of one shape"):
        NTXentLoss()(torch.zeros(shape1), torch.zeros(shape2))


@pytest.mark.parametrize("temperature", [0, -1, float("nan")])
def test_rejects_temperature(temperature):
    with pytest.raises(ValueError, match="temperature"):
        NTXentLoss(temperature)
