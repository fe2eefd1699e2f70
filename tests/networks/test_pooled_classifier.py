from __future__ import annotations

from functools import partial

import pytest
import torch

from common.networks import Med3DNet, PooledClassifier

SIZE = (17, 24, 30)


@pytest.fixture
def image():
    torch.manual_seed(0)
    return torch.rand(2, 1, *SIZE)


def test_pooled_classifier(image):
    net = Med3DNet(partial(PooledClassifier, num_classes=4), width=4).eval()
    pooled = net.encoder(image)[-1].mean((2, 3, 4))
    expected = pooled @ net.head.fc.weight[:, :, 0, 0, 0].T + net.head.fc.bias
    torch.testing.assert_close(net(image), expected)


def test_chances_sum_to_one_under_autocast(image):
    net = Med3DNet(partial(PooledClassifier, num_classes=4), width=4).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        chances = net(image).softmax(1)
    torch.testing.assert_close(chances.sum(1), torch.ones(2))
