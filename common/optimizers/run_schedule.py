from __future__ import annotations

import logging
import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["CosineSchedule", "ExponentialSchedule", "PolynomialSchedule", "RunSchedule"]

logger = logging.getLogger(__name__)


class RunSchedule(LRScheduler):
    """Learning rate over a run, a function of the optimiser steps done and of those of the whole run.

    A run has the same shape whatever it trains on: epochs of one scan and of a hundred differ in steps, not in the
    curve. ``common.handlers.LearningRate`` says how many steps the run has and moves the schedule after each of them.

    Args:
        optimizer: each of its groups keeps the ratio of its own rate to the others.
        warmup: steps in which the rate rises in a straight line; a fraction of all steps (a number below 1 with a
            decimal point) or a number of steps (a whole number).
        warmup_start: factor of the rate at the first step, if there is a warm-up.

    Raises:
        ValueError: ``warmup`` is negative, or 1 and more with a decimal point.
    """

    def __init__(self, optimizer: Optimizer, warmup: float = 0, warmup_start: float = 0.0) -> None:
        whole = isinstance(warmup, int) and not isinstance(warmup, bool)
        if not ((whole and warmup >= 0) or (isinstance(warmup, float) and 0 <= warmup < 1)):
            raise ValueError(
                f"warmup is {warmup!r}; it has to be a fraction of all steps (0.05) or a whole number of steps (20)."
            )
        self.warmup = warmup
        self.warmup_start = warmup_start
        self.total: int | None = None
        super().__init__(optimizer)

    def begin(self, total: int) -> None:
        """Say how many optimiser steps the run has."""
        self.total = total
        if self.warmup >= total:
            logger.warning(
                "the warm-up of %d steps is longer than the run of %d, so that the full learning rate is never "
                "reached: give `warmup` as a fraction, 0.05.",
                self.warmup,
                total,
            )
        self._set_rates()

    def factor(self, step: int) -> float:
        """Of the rate of each group, at one step; 0 is the first."""
        if self.total is None:
            if step > 0:
                raise RuntimeError("the schedule was not told the steps of the run: use common.handlers.LearningRate.")
            return self.warmup_start if self.warmup else 1.0
        warmup = self.warmup * self.total if isinstance(self.warmup, float) else self.warmup
        if step < warmup:
            return self.warmup_start + (1 - self.warmup_start) * step / warmup
        return self.shape(min((step - warmup) / max(self.total - warmup, 1e-12), 1.0))

    def shape(self, progress: float) -> float:
        """Of the rate, from 0, where the warm-up ends, to 1, the end of the run."""
        raise NotImplementedError

    def get_lr(self) -> list[Any]:
        return [rate * self.factor(self.last_epoch) for rate in self.base_lrs]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's.

        Raises:
            ValueError: the state is of a schedule by epochs, or of a run of another number of steps.
        """
        if "total" not in state_dict:
            raise ValueError("it is of a schedule that went by epochs, which is no more")
        if self.total is not None and state_dict["total"] != self.total:
            raise ValueError(f"it is of a run of {state_dict['total']} optimiser steps, this one has {self.total}")
        super().load_state_dict(state_dict)
        self._set_rates()

    def _set_rates(self) -> None:
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = rate
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


class CosineSchedule(RunSchedule):
    """Half a cosine from the full rate to 0, after the warm-up (Loshchilov and Hutter, SGDR, ICLR 2017).

    Args:
        optimizer, warmup, warmup_start: of ``RunSchedule``.
    """

    def shape(self, progress: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * progress))


class PolynomialSchedule(RunSchedule):
    """``(1 - progress) ** power`` after the warm-up: nnU-Net's with 0.9, a straight line to 0 with 1.

    Args:
        optimizer, warmup, warmup_start: of ``RunSchedule``.
        power: exponent.
    """

    def __init__(self, optimizer: Optimizer, power: float = 0.9, warmup: float = 0, warmup_start: float = 0.0) -> None:
        self.power = power
        super().__init__(optimizer, warmup, warmup_start)

    def shape(self, progress: float) -> float:
        return (1 - progress) ** self.power


class ExponentialSchedule(RunSchedule):
    """Times ``gamma`` in each of ``periods`` equal parts of the run, without a jump between them.

    A paper that trains 200 epochs, each with 0.99 times the rate of the one before, has ``periods=200`` and the same
    rate at the beginning of each epoch; a run of another length has the same curve.

    Args:
        optimizer, warmup, warmup_start: of ``RunSchedule``.
        gamma: factor of a period.
        periods: in a run.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        gamma: float = 0.99,
        periods: float = 200,
        warmup: float = 0,
        warmup_start: float = 0.0,
    ) -> None:
        self.gamma = gamma
        self.periods = periods
        super().__init__(optimizer, warmup, warmup_start)

    def shape(self, progress: float) -> float:
        return self.gamma ** (self.periods * progress)
