from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer as Stock

from common import gathered
from common.inferers import SlidingWindowInferer


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def network(image):
    return torch.cat((image.tanh(), image.roll(1, 2) * image.mean(), image.square()), dim=1)


@pytest.fixture(params=[False, True], ids=["memory", "file"])
def in_file(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(gathered, "FILE_BYTES", 1)
    return request.param


@pytest.mark.parametrize("mode", ["constant", "gaussian"])
@pytest.mark.parametrize("size", [(13, 9, 11), (3, 12, 5), (4, 4, 4)], ids=str)
@pytest.mark.parametrize("roi", [(4, 5, 6), (4, -1, 4)], ids=str)
def test_values_are_monai_s(size, roi, mode, in_file):
    image = MetaTensor(torch.randn(2, 1, *size), meta={"filename_or_obj": ["a", "b"]})
    settings = {"roi_size": roi, "sw_batch_size": 3, "overlap": 0.5, "mode": mode, "cval": -2}
    found, expected = (kind(**settings)(image, network) for kind in (SlidingWindowInferer, Stock))
    assert torch.equal(found.as_tensor(), expected.as_tensor())
    assert type(found) is type(expected)
    assert found.meta == expected.meta
    assert bool(gathered._files) == in_file
    del found
    assert not gathered._files  # the file goes with the prediction


def test_a_plain_tensor_stays_one():
    assert type(SlidingWindowInferer((4, 4, 4))(torch.ones(1, 1, 6, 6, 6), network)) is torch.Tensor


@pytest.mark.parametrize("several", [lambda x: (x, x + 1), lambda x: x[..., ::2]], ids=["tuple", "size"])
def test_other_predictions_are_left_to_monai(several):
    image = torch.randn(1, 1, 8, 8, 8)
    found, expected = (kind((4, 4, 4))(image, several) for kind in (SlidingWindowInferer, Stock))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
