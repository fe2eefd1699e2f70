from __future__ import annotations

import math
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn

from .optimizer_steps import is_optimizer_step

__all__ = ["MomentumTeacher", "move_teacher"]


class MomentumTeacher:
    """Move a teacher towards its student after every optimiser step (Grill et al., BYOL, NeurIPS 2020, equation 1).

    Args:
        student, teacher: modules of the same structure, sub-modules of a network not wrapped by DDP. The teacher's
            parameters require no gradient.
        momentum: 1 keeps the teacher, 0 makes it the student.
        ramp: whether the momentum rises from there to 1 over the run, by half a cosine, as in BYOL's section 3.3.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, momentum: float = 0.99, ramp: bool = False) -> None:
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be between 0 and 1, not {momentum}.")
        self.student, self.teacher, self.momentum, self.ramp = student, teacher, momentum, ramp
        teacher.requires_grad_(False)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        if is_optimizer_step(engine):
            move_teacher(self.student, self.teacher, self.momentum_at(engine))

    def momentum_at(self, engine: Engine) -> float:
        """The momentum of the last step."""
        if not self.ramp:
            return self.momentum
        state: Any = engine.state  # ignite fills in both lengths before the first iteration
        progress = (state.iteration - 1) / (state.epoch_length * state.max_epochs)
        return 1 - (1 - self.momentum) * (1 + math.cos(math.pi * progress)) / 2


@torch.no_grad()
def move_teacher(student: nn.Module, teacher: nn.Module, momentum: float) -> None:
    """``teacher = momentum * teacher + (1 - momentum) * student`` for parameters.

    Buffers stay unchanged: the batch norms of the teacher gather their statistics with the teacher's weights.
    """
    for parameter, source in zip(teacher.parameters(), student.parameters(), strict=True):
        parameter.lerp_(source, 1 - momentum)
