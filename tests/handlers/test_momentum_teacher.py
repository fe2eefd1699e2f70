from __future__ import annotations

import copy

import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from common.handlers import MomentumTeacher


def make():
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    teacher = copy.deepcopy(student)
    for module, value in ((student, 1.0), (teacher, 5.0)):
        for tensor in module.state_dict().values():
            tensor.fill_(value)
    return student, teacher


def run(student, teacher, momentum, steps=1):
    engine = Engine(lambda engine, batch: None)
    MomentumTeacher(student, teacher, momentum).attach(engine)
    engine.run([0] * steps, max_epochs=1)


@pytest.mark.parametrize(("momentum", "expected"), [(1, 5.0), (0, 1.0), (0.75, 4.0)])
def test_one_step(momentum, expected):
    student, teacher = make()
    run(student, teacher, momentum)
    assert all((parameter == expected).all() for parameter in teacher.parameters())
    assert all((parameter == 1).all() for parameter in student.parameters())
    assert all((buffer == 5).all() for buffer in teacher.buffers())  # statistics of its own


def test_steps_add_up():
    student, teacher = make()
    run(student, teacher, 0.9, steps=4)
    for parameter in teacher.parameters():
        torch.testing.assert_close(parameter, torch.full_like(parameter, 1 + 4 * 0.9**4))


def test_the_teacher_takes_no_gradient():
    student, teacher = make()
    run(student, teacher, 0.9)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in student.parameters())
    (student(torch.randn(4, 2)) - teacher(torch.randn(4, 2))).sum().backward()
    assert all(parameter.grad is None and parameter.grad_fn is None for parameter in teacher.parameters())


def test_the_ramp_rises_by_half_a_cosine_over_the_run():
    student, teacher = make()
    engine = Engine(lambda engine, batch: None)
    handler = MomentumTeacher(student, teacher, 0.5, ramp=True)
    handler.attach(engine)
    seen = []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: seen.append(handler.momentum_at(engine)))
    engine.run([0] * 2, max_epochs=3)
    # 1 - (1 - 0.5) (cos(pi k / 6) + 1) / 2 at the steps 0 to 5
    assert seen == pytest.approx([0.5, 0.533494, 0.625, 0.75, 0.875, 0.966506], abs=1e-6)
    expected = 5.0
    for momentum in seen:
        expected = momentum * expected + (1 - momentum) * 1.0
    torch.testing.assert_close(teacher[0].weight, torch.full_like(teacher[0].weight, expected))


@pytest.mark.parametrize("momentum", [-0.1, 1.1])
def test_wrong_momentum(momentum):
    with pytest.raises(ValueError, match=r"momentum must be between 0 and 1"):
        MomentumTeacher(*make(), momentum)


def test_a_teacher_of_another_structure():
    with pytest.raises(ValueError, match="zip"):
        run(make()[0], nn.Linear(2, 3), 0.9)
