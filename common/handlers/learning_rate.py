from __future__ import annotations

from ignite.engine import Engine, Events

from ..optimizers import RunSchedule
from .optimizer_steps import is_optimizer_step, optimizer_steps

__all__ = ["LearningRate"]


class LearningRate:
    """Tell a schedule how many optimiser steps the run has, and move it after each of them.

    Put it before ``Checkpoint``, which loads the schedule's state.

    Args:
        lr_scheduler: one of ``common.optimizers``.

    Raises:
        ValueError: it is another scheduler; that one would count steps as epochs.
    """

    def __init__(self, lr_scheduler: RunSchedule) -> None:
        if not isinstance(lr_scheduler, RunSchedule):
            raise ValueError(
                f"lr_scheduler is {type(lr_scheduler).__name__}, which does not take the steps of the run: use "
                "CosineSchedule, PolynomialSchedule or ExponentialSchedule of common.optimizers, or MONAI's "
                "LrScheduleHandler in place of this handler."
            )
        self.lr_scheduler = lr_scheduler

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def begin(self, engine: Engine) -> None:
        self.lr_scheduler.begin(optimizer_steps(engine))

    def __call__(self, engine: Engine) -> None:
        if is_optimizer_step(engine):
            self.lr_scheduler.step()
