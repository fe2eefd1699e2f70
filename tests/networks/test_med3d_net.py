from __future__ import annotations

from functools import partial

import pytest
import torch

from common.networks import BranchDecoder, DenseASPP, LungDecoder, Med3DNet, MedicalNetHead

SIZE = (17, 24, 30)


@pytest.fixture
def image():
    torch.manual_seed(0)
    return torch.rand(2, 1, *SIZE)


@pytest.mark.parametrize(
    "head",
    [
        partial(LungDecoder, num_classes=3, features=16),
        partial(BranchDecoder, classes=[3]),
        partial(DenseASPP, num_classes=3, hidden=8, growth=4),
        partial(MedicalNetHead, num_classes=3),
    ],
    ids=["lung", "branch", "dense_aspp", "medicalnet"],
)
def test_logits_lie_on_the_images_grid(image, head):
    net = Med3DNet(head, width=4)
    logits = net.eval()(image)
    assert logits.shape == (2, 3, *SIZE) and logits.dtype == torch.float32
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in net.encoder.parameters())
