import pytest
import torch
from torch.nn import functional as F

from common.losses import BYOLLoss


def prediction(*tensors):
    return dict(zip(("prediction1", "prediction2", "target1", "target2"), tensors, strict=True))


def test_squared_distance_of_unit_vectors_across_views():
    torch.manual_seed(0)
    p1, p2, t1, t2 = torch.randn(4, 2, 3, 5)
    unit = [F.normalize(x, dim=-1) for x in (p1, p2, t1, t2)]
    expected = (unit[0] - unit[3]).square().sum(-1).mean() + (unit[1] - unit[2]).square().sum(-1).mean()
    torch.testing.assert_close(BYOLLoss()(prediction(p1, p2, t1, t2)), expected)


def test_from_0_at_the_target_to_8_opposite():
    x, y = torch.randn(2, 2, 3, 4)
    assert BYOLLoss()(prediction(x, y, 2 * y, 3 * x)).item() == pytest.approx(0, abs=1e-6)
    assert BYOLLoss()(prediction(-x, -y, y, x)).item() == pytest.approx(8, abs=1e-5)


def test_no_gradient_to_the_targets():
    tensors = [torch.randn(2, 3, 4, requires_grad=True) for _ in range(4)]
    BYOLLoss()(prediction(*tensors)).backward()
    assert all(x.grad.any() for x in tensors[:2]) and all(x.grad is None for x in tensors[2:])
