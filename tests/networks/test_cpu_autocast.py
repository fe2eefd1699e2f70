from __future__ import annotations

import pytest
import torch
from torch import nn

from common.networks import autocast_on_cpu


class Net(nn.Module):
    def __init__(self, fail=False):
        super().__init__()
        self.conv, self.norm, self.fail = nn.Conv3d(1, 4, 3, padding=1), nn.InstanceNorm3d(4), fail

    def forward(self, image):
        self.seen = self.conv(image).dtype
        if self.fail:
            raise ValueError("no")
        return {"maps": [self.norm(self.conv(image))], "count": 3, "label": torch.ones(1, dtype=torch.long)}


@pytest.fixture
def image():
    return torch.randn(2, 1, 6, 6, 6, generator=torch.Generator().manual_seed(0))


def test_the_network_computes_in_bfloat16_and_returns_float32(image):
    torch.manual_seed(0)
    net = Net()
    expected = net(image)["maps"][0]
    result = autocast_on_cpu(net, "cpu")(image)
    assert net.seen == torch.bfloat16 and not torch.is_autocast_enabled("cpu")
    assert result["maps"][0].dtype == torch.float32 and result["count"] == 3 and result["label"].dtype == torch.long
    torch.testing.assert_close(result["maps"][0], expected, atol=0.05, rtol=0.05)
    assert not torch.equal(result["maps"][0], expected)


def test_gradients_and_weights_stay_in_float32(image):
    net = autocast_on_cpu(Net(), "cpu")
    net(image)["maps"][0].square().mean().backward()
    assert all(p.dtype == torch.float32 and p.grad.dtype == torch.float32 for p in net.conv.parameters())


def test_it_ends_with_an_error_too(image):
    net = autocast_on_cpu(Net(fail=True), "cpu")
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            net(image)
        assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(("device", "enabled"), [("cpu", False), ("cuda", True)])
def test_elsewhere_nothing_changes(image, device, enabled):
    net = autocast_on_cpu(Net(), device, enabled)
    net(image)
    assert net.seen == torch.float32
