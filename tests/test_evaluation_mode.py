from __future__ import annotations

import pytest
import torch
from torch import nn

from common.evaluation_mode import evaluation_mode


@pytest.mark.parametrize("fails", [False, True])
def test_each_part_gets_its_own_mode_back(fails):
    net = nn.Sequential(nn.BatchNorm3d(1), nn.Sequential(nn.BatchNorm3d(1), nn.Dropout()), nn.Dropout()).train()
    net[1][0].eval()
    net[2].eval()
    before = [part.training for part in net.modules()]
    try:
        with evaluation_mode(net):
            assert not any(part.training for part in net.modules()) and not torch.is_grad_enabled()
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert [part.training for part in net.modules()] == before == [True, True, True, False, True, False]
    assert torch.is_grad_enabled()
