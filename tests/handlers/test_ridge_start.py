from __future__ import annotations

import logging

import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from common.handlers import RidgeStart, TargetScale
from common.networks import VolumeRegressor


class Bright(nn.Module):
    """Class 1 where the image is bright; its dropout must rest."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, image):
        return self.drop(torch.cat((torch.zeros_like(image), 200 * (image - 0.5), -200 * image), dim=1))


def cohort(count=12):
    """Ages that grow with the brightness of class 1."""
    torch.manual_seed(0)
    items = []
    for number in range(count):
        image = (torch.rand(1, 6, 6, 6) > 0.6).float() * (1 + number / count) + 0.01 * torch.rand(1, 6, 6, 6)
        items.append({"image": image, "label": 20.0 + 5 * number})
    return items


def start(net, items, iteration=0):
    engine = Engine(lambda engine, batch: None)
    TargetScale(net, items).attach(engine)
    # as a checkpoint does
    engine.add_event_handler(Events.STARTED, lambda: setattr(engine.state, "iteration", iteration))
    RidgeStart(net, items).attach(engine)
    engine.run([0], max_epochs=1)


def test_it_predicts_what_the_volumes_tell(caplog):
    net, items = VolumeRegressor(Bright(), 1, 3).train(), cohort()
    with caplog.at_level(logging.INFO):
        start(net, items)
    assert net.training and net.network.drop.training
    net.eval()
    images, ages = torch.stack([item["image"] for item in items]), torch.tensor([item["label"] for item in items])
    assert (net(images)[:, 0] - ages).abs().mean() < 1
    assert "ridge regression on the volumes of 12 training items; mean absolute error of left-out items" in caplog.text
    error = float(caplog.text.split("left-out items ")[1].split(".\n")[0])
    assert 0 < error < 2
    scaled = (net.features(images) - net.feature_mean) / net.feature_std
    torch.testing.assert_close(scaled[:, 0].std(correction=0), torch.tensor(1.0), rtol=1e-3, atol=1e-3)


def test_a_resumed_run_keeps_its_head():
    net = VolumeRegressor(Bright(), 1, 3)
    before = net.head.weight.clone()
    start(net, cohort(), iteration=1)
    assert torch.equal(net.head.weight, before) and net.feature_mean.abs().sum() == 0


def test_one_item_gives_its_own_number(caplog):
    net, items = VolumeRegressor(Bright(), 1, 3).eval(), cohort(1)
    with caplog.at_level(logging.INFO):
        start(net, items)
    assert net(items[0]["image"][None]).item() == pytest.approx(20.0) and "left-out" not in caplog.text


def test_features_that_are_not_finite_are_refused():
    items = cohort()
    items[3]["image"] = torch.full((1, 6, 6, 6), float("nan"))
    with pytest.raises(ValueError, match="its volumes are not finite numbers"):
        start(VolumeRegressor(Bright(), 1, 3), items)


def test_another_network_is_refused():
    with pytest.raises(ValueError, match=r"not for Linear: list presets/volumes\.json after tasks/age\.json"):
        RidgeStart(nn.Linear(1, 1), [])
