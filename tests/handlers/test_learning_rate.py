from __future__ import annotations

import pytest
import torch
from monai.engines import SupervisedTrainer
from torch import nn

from common.handlers import GradientClipping, LearningRate, MomentumTeacher
from common.optimizers import CosineSchedule, PolynomialSchedule


class Recorder(torch.optim.SGD):
    """The rate and the gradient's norm of every step."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, lr)
        self.rates, self.norms = [], []

    def step(self, closure=None):
        self.rates.append(self.param_groups[0]["lr"])
        self.norms.append(self.param_groups[0]["params"][0].grad.norm().item())
        super().step()


def train(scans, epochs, accumulation=1, handlers=(), net=None, schedule=None):
    net = net or nn.Linear(2, 1, bias=False)
    optimizer = Recorder(net.parameters(), 1.0)
    schedule = (schedule or (lambda one: PolynomialSchedule(one, 0.9)))(optimizer)
    batch = {"image": torch.tensor([[3.0, 4.0]]), "label": torch.zeros(1, 1)}
    SupervisedTrainer(
        device=torch.device("cpu"), max_epochs=epochs, train_data_loader=[batch] * scans, network=net,
        optimizer=optimizer, loss_function=lambda pred, label: (pred - label).sum(), decollate=False,
        accumulation_steps=accumulation, train_handlers=[LearningRate(schedule), *handlers],
    ).run()  # fmt: skip
    return optimizer


def test_the_rates_depend_on_the_steps_alone_not_on_the_scans():
    """Of a run of 24 steps: 24 epochs of one scan, and one of 24."""
    expected = [(1 - step / 24) ** 0.9 for step in range(24)]
    for scans, epochs in ((1, 24), (4, 6), (24, 1)):
        assert train(scans, epochs).rates == pytest.approx(expected)


@pytest.mark.parametrize(("scans", "steps"), [(6, 2), (7, 3)])
def test_accumulated_gradients_make_one_step(scans, steps):
    """Of three batches each, and what is left at the end of an epoch."""
    found = train(scans, 2, accumulation=3)
    assert found.rates == pytest.approx([(1 - step / (2 * steps)) ** 0.9 for step in range(2 * steps)])


def test_gradients_are_clipped_once_a_step():
    net = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(net.weight)
    found = train(4, 1, accumulation=4, handlers=[GradientClipping(6.0)], net=net)
    assert found.norms == pytest.approx([5.0], abs=1e-5)  # the mean of four of length 5, none of which is cut


def test_a_teacher_is_moved_once_a_step():
    net, teacher = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
    nn.init.ones_(net.weight)
    nn.init.zeros_(teacher.weight)
    train(2, 1, accumulation=2, handlers=[MomentumTeacher(net, teacher, 0.5)], net=net)
    torch.testing.assert_close(teacher.weight.data, net.weight.data / 2)  # once, not after each batch


def test_other_schedules_are_refused():
    with pytest.raises(ValueError, match=r"ExponentialLR, which does not take the steps .* ExponentialSchedule"):
        train(1, 1, schedule=lambda one: torch.optim.lr_scheduler.ExponentialLR(one, 0.99))


def test_the_first_step_is_of_the_warm_up():
    found = train(4, 5, schedule=lambda one: CosineSchedule(one, warmup=0.2, warmup_start=0.1))
    assert found.rates[:5] == pytest.approx([0.1, 0.325, 0.55, 0.775, 1.0])
