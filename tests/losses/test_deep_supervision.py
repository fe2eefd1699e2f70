from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from common.losses import DeepSupervisionLoss


@pytest.mark.parametrize("levels", [1, 2, 3, 6])
def test_it_is_a_weighted_mean(levels):
    torch.manual_seed(0)
    target = torch.rand(2, 1, 32, 32)
    maps = [torch.rand(2, 1, 32 >> level, 32 >> level) for level in range(levels)]
    expected = weights = 0.0
    for level, one in enumerate(maps):
        # torch's nearest-exact takes the voxel above the middle, of each 2 x 2 the last
        step, start = 1 << level, (1 << level) // 2
        expected += ((one - target[..., start::step, start::step]) ** 2).mean() / 2**level
        weights += 1 / 2**level
    torch.testing.assert_close(DeepSupervisionLoss(nn.MSELoss())(maps, target), expected / weights)


def test_equal_losses_of_all_levels_are_the_loss():
    """A network with deep supervision and one without take steps of one size."""
    target = torch.ones(1, 1, 16, 16)
    maps = [torch.zeros(1, 1, 16 >> level, 16 >> level) for level in range(4)]
    assert float(DeepSupervisionLoss(nn.MSELoss())(maps, target)) == pytest.approx(1)
    assert DeepSupervisionLoss(nn.MSELoss())(maps[0], target) == F.mse_loss(maps[0], target) == 1


def test_given_weights_are_normalised():
    assert DeepSupervisionLoss(nn.MSELoss(), weights=[3.0, 1.0]).get_weights(2) == [0.75, 0.25]
