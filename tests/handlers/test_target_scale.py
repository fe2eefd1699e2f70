from __future__ import annotations

import logging

import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from common.handlers import TargetScale


class Regressor(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.register_buffer("mean", torch.tensor(0.0))
        self.register_buffer("std", torch.tensor(1.0))

    def forward(self, x):
        return self.layer(x) * self.std + self.mean


def run(network, items, **options):
    engine = Engine(lambda engine, batch: None)
    TargetScale(network, items, **options).attach(engine)
    engine.run([0], max_epochs=1)


def test_mean_and_standard_deviation_of_the_training_list(caplog):
    caplog.set_level(logging.INFO)
    net = Regressor()
    run(net, [{"label": 20}, {"label": "40"}, {"label": 60.0}])
    assert net.mean == 40 and net.std.item() == pytest.approx((800 / 3) ** 0.5)
    assert "target over 3 training items: mean 40, standard deviation 16.33" in caplog.text
    assert {"mean", "std"} < set(net.state_dict()) and net.state_dict()["mean"] == 40


def test_the_scale_is_set_when_training_starts():
    net, engine = Regressor(), Engine(lambda engine, batch: None)
    TargetScale(net, [{"age": 1}, {"age": 3}], key="age").attach(engine)
    assert net.mean == 0 and net.std == 1
    seen = []
    engine.add_event_handler(Events.EPOCH_STARTED, lambda: seen.append((net.mean.item(), net.std.item())))
    engine.run([0], max_epochs=1)
    assert seen == [(2, 1)]


@pytest.mark.parametrize("values", [[42], [42, 42, 42]])
def test_without_spread_the_unit(values):
    net = Regressor()
    run(net, [{"label": value} for value in values])
    assert net.mean == 42 and net.std == 1


def test_a_net_without_these_buffers_is_left(caplog):
    caplog.set_level(logging.INFO)
    net = nn.Sequential(nn.Linear(1, 3), nn.BatchNorm1d(3))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    run(net, [{"label": "path/to/labels.nii"}])
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert "target" not in caplog.text
