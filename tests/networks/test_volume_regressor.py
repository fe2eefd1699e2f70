from __future__ import annotations

import math

import pytest
import torch
from monai.networks.nets import DynUNet
from torch import nn

from common.networks import VolumeRegressor, place


class Fixed(nn.Module):
    """Logits that do not depend on the image."""

    def __init__(self, logits, dropout=0.0):
        super().__init__()
        self.logits, self.drop = nn.Parameter(logits), nn.Dropout(dropout)

    def forward(self, image):
        return self.drop(self.logits.expand(len(image), *self.logits.shape[1:]))


def slow_features(logits, image):
    """Voxel by voxel, for one image (C, *spatial)."""
    channels, voxels = image.flatten(1), logits.flatten(1)
    classes = len(voxels)
    weight = [[0.0] * voxels.shape[1] for _ in range(classes)]
    for place_ in range(voxels.shape[1]):
        powers = [math.exp(float(voxels[k, place_])) for k in range(classes)]
        for k in range(classes):
            weight[k][place_] = powers[k] / sum(powers)
    total = sum(sum(weight[k]) for k in range(1, classes))
    shares = [math.log(sum(weight[k]) / total) for k in range(1, classes)]
    means, deviations = [], []
    for k in range(1, classes):
        for values in channels.tolist():
            mean = sum(w * v for w, v in zip(weight[k], values, strict=True)) / sum(weight[k])
            means.append(mean)
            square = sum(w * (v - mean) ** 2 for w, v in zip(weight[k], values, strict=True)) / sum(weight[k])
            deviations.append(math.sqrt(square))
    return torch.tensor(shares + means + deviations)


@pytest.mark.parametrize("channels", [1, 2])
def test_features_against_a_loop_over_voxels(channels):
    torch.manual_seed(0)
    logits, image = torch.randn(1, 4, 3, 4, 5), torch.randn(2, channels, 3, 4, 5)
    net = VolumeRegressor(Fixed(logits), channels, 4)
    expected = torch.stack([slow_features(logits[0], one) for one in image])
    torch.testing.assert_close(net.features(image), expected, rtol=1e-4, atol=1e-4)
    assert net.head.in_features == expected.shape[1] == 3 * (1 + 2 * channels)


def test_the_number_is_in_the_unit_of_the_target():
    torch.manual_seed(0)
    net = VolumeRegressor(Fixed(torch.randn(1, 3, 4, 4, 4)), 1, 3, mean=60.0, std=12.0)
    image = torch.randn(2, 1, 4, 4, 4)
    net.feature_mean.normal_()
    net.feature_std.uniform_(1, 2)
    scaled = (net.features(image) - net.feature_mean) / net.feature_std
    expected = 60 + 12 * (scaled @ net.head.weight.T + net.head.bias)
    torch.testing.assert_close(net(image), expected)
    other = VolumeRegressor(Fixed(torch.zeros(1, 3, 4, 4, 4)), 1, 3)
    other.load_state_dict(net.state_dict())
    torch.testing.assert_close(other(image), expected)


def test_a_class_that_is_nowhere_has_finite_features_and_gradients():
    logits = torch.zeros(1, 3, 4, 4, 4)
    logits[:, 2] = -200
    net = VolumeRegressor(Fixed(logits), 1, 3)
    found = net.features(torch.ones(2, 1, 4, 4, 4))
    assert found.isfinite().all() and found[0, 1] < -10
    found.sum().backward()
    assert net.network.logits.grad.isfinite().all()


def test_a_frozen_network_computes_as_in_evaluation_and_gets_no_gradient():
    torch.manual_seed(0)
    image = torch.randn(2, 1, 4, 4, 4)
    for frozen in (True, False):
        net = VolumeRegressor(Fixed(torch.randn(1, 3, 4, 4, 4), dropout=0.5), 1, 3, frozen=frozen).train()
        assert torch.equal(net.features(image), net.features(image)) is frozen
        net(image).sum().backward()
        assert (net.network.logits.grad is None) is frozen and net.head.weight.grad.abs().sum() > 0
        assert net.head.training and net.network.training is not frozen


def test_of_deep_supervision_the_finest_output_counts():
    torch.manual_seed(0)
    network = DynUNet(3, 1, 3, [3] * 3, [1, 2, 2], [2, 2], filters=[4, 4, 4], deep_supervision=True, deep_supr_num=1)
    net, image = VolumeRegressor(network, 1, 3), torch.randn(1, 1, 8, 8, 8)
    assert network.train()(image).ndim == 6
    torch.testing.assert_close(net.train().features(image), net.eval().features(image))
    both = nn.Module()
    both.forward = lambda image: [network.eval()(image), image]
    torch.testing.assert_close(VolumeRegressor(both, 1, 3).features(image), net.eval().features(image))


def test_the_number_is_float32_with_amp():
    torch.manual_seed(0)
    net = VolumeRegressor(nn.Conv3d(1, 3, 1), 1, 3, mean=60.0, std=12.0).eval()
    image = torch.linspace(0.5, 1, 64).view(-1, 1, 1, 1, 1) * torch.rand(1, 1, 4, 4, 4)
    found = place(net, "cpu", amp=True)(image)
    assert found.dtype == torch.float32 and len(found.unique()) > 50
    torch.testing.assert_close(found, net(image), rtol=0.02, atol=0.2)


def test_rejects_a_scale_or_classes():
    with pytest.raises(ValueError, match="standard deviation of the target must be larger than 0"):
        VolumeRegressor(nn.Identity(), 1, 3, std=0.0)
    with pytest.raises(ValueError, match="two classes or more"):
        VolumeRegressor(nn.Identity(), 1, 1)
    with pytest.raises(ValueError, match=r"one number, such as an age, not 3 classes: list tasks/age\.json"):
        VolumeRegressor(nn.Identity(), 1, 3, outputs=3)
