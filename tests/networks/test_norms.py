from __future__ import annotations

import pytest
import torch
from torch import nn

from common.networks.norms import FrozenBatchNorm, make_norm, refuse_no_statistics


def test_frozen_norms_without_statistics_are_refused():
    net = nn.Sequential(nn.Conv3d(1, 2, 1), make_norm("frozen", 2), make_norm("frozen", 2))
    image = torch.rand(2, 2, 4, 4, 4)
    torch.testing.assert_close(net[1](image), image, atol=1e-4, rtol=0)  # they normalise nothing
    sentence = r"^norm is frozen, .* random weights, .*\(mean 0, variance 1\) normalise nothing: pre-train first\.$"
    with pytest.raises(ValueError, match=sentence):
        refuse_no_statistics(net, "pre-train first")


@pytest.mark.parametrize(("name", "value"), [("running_mean", 0.5), ("running_var", 2.0)])
def test_frozen_norms_with_statistics_are_not(name, value):
    net = nn.Sequential(make_norm("frozen", 2), make_norm("frozen", 2))
    getattr(net[1], name)[0] = value
    refuse_no_statistics(net, "")


@pytest.mark.parametrize("name", ["batch", "group"])
def test_other_norms_need_no_statistics(name):
    refuse_no_statistics(nn.Sequential(make_norm(name, 4)), "")


def test_tensors_without_memory_are_not_read():
    with torch.device("meta"):
        net = nn.Sequential(FrozenBatchNorm(2))
    refuse_no_statistics(net, "")
