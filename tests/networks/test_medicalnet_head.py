from __future__ import annotations

from functools import partial

import pytest
import torch

from common.networks import Med3DNet, MedicalNetHead

SIZE = (17, 24, 30)


@pytest.fixture
def image():
    torch.manual_seed(0)
    return torch.rand(2, 1, *SIZE)


def test_medicalnet_head_is_coarse_in_training(image):
    net = Med3DNet(partial(MedicalNetHead, num_classes=3), width=4)
    assert net.train()(image).shape == (2, 3, 6, 6, 8)  # ceil(size / 8) * 2
    assert net.eval()(image).shape == (2, 3, *SIZE)
    assert net.head.layers[-1].bias is None
