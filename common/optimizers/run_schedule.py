from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["CosineSchedule", "ExponentialSchedule", "PolynomialSchedule", "RunSchedule", "SawtoothSchedule"]

logger = logging.getLogger(__name__)


class RunSchedule(LRScheduler):
    """Learning rate over a run, as a function of the steps done and the steps of the whole run.

    The curve has the same shape for any data: epochs of one scan and of a hundred differ in steps only.
    ``common.handlers.LearningRate`` tells the schedule how many steps the run has and moves it after each step.

    Args:
        optimizer: its groups keep the ratios of their rates.
        warmup: steps of a linear rise of the rate; a fraction of all steps (a number below 1 with a decimal point) or a
            number of steps (a whole number).
        warmup_start: factor of the rate at the first step, if there is a warm-up.

    Raises:
        ValueError: ``warmup`` is negative, or 1 or more with a decimal point.
    """

    encoder_rests = False
    """Whether the encoder stays frozen at this step (``common.handlers.FrozenEncoder``)."""

    def __init__(self, optimizer: Optimizer, warmup: float = 0, warmup_start: float = 0.0) -> None:
        _check_length("warmup", warmup)
        self.warmup = warmup
        self.warmup_start = warmup_start
        self.total: int | None = None
        super().__init__(optimizer)

    def begin(self, total: int) -> None:
        """Say how many optimiser steps the run has."""
        self.total = total
        steps = self.steps_to_full_rate()
        if steps >= total:
            logger.warning(
                "the warm-up of %d steps is longer than the run of %d, so the full learning rate is never "
                "reached: give `warmup` as a fraction, 0.05.",
                steps,
                total,
            )
        self._set_rates()

    def factor(self, step: int) -> float:
        """Factor of the rate of each group at one step; 0 is the first step."""
        if self.total is None:
            if step > 0:
                raise RuntimeError("the schedule was not told the steps of the run: use common.handlers.LearningRate.")
            return self.warmup_start if self.warmup else 1.0
        return self.tooth(step, self.steps(self.warmup), self.total)

    def group_factor(self, step: int, group: Mapping[str, Any]) -> float:
        """Factor of the rate of one group of the optimiser."""
        return self.factor(step)

    def tooth(self, step: float, warmup: float, total: float) -> float:
        """A rise over ``warmup`` steps, then the shape up to ``total``."""
        if step < warmup:
            return self.warmup_start + (1 - self.warmup_start) * step / warmup
        return self.shape(min((step - warmup) / max(total - warmup, 1e-12), 1.0))

    def steps(self, length: float) -> float:
        """Steps of a part of the run, given as a fraction or a number of steps."""
        return length * (self.total or 0) if isinstance(length, float) else length

    def steps_to_full_rate(self) -> float:
        return self.steps(self.warmup)

    def shape(self, progress: float) -> float:
        """Factor of the rate from progress 0, the end of the warm-up, to 1, the end of the run."""
        raise NotImplementedError

    def get_lr(self) -> list[Any]:
        groups = zip(self.base_lrs, self.optimizer.param_groups, strict=True)
        return [rate * self.group_factor(self.last_epoch, group) for rate, group in groups]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's.

        Raises:
            ValueError: the state belongs to a schedule by epochs, to a run with another number of steps, or to other
                settings.
        """
        if "total" not in state_dict:
            raise ValueError("it belongs to a schedule by epochs, which no longer exists")
        if self.total is not None and state_dict["total"] != self.total:
            raise ValueError(
                f"it belongs to a run of {state_dict['total']} optimiser steps, but this one has {self.total}"
            )
        for name, value in state_dict.items():
            own = vars(self).get(name, value)
            setting = isinstance(value, int | float) and name not in ("last_epoch", "total") and name[0] != "_"
            if setting and own != value:  # torch's would take the state's, whatever this run's record says
                raise ValueError(f"it belongs to a schedule with {name} {value}, but this one has {own}")
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
    """``(1 - progress) ** power`` after the warm-up: 0.9 gives nnU-Net's curve, 1 a straight line to 0.

    Args:
        optimizer, warmup, warmup_start: of ``RunSchedule``.
        power: exponent.
    """

    def __init__(self, optimizer: Optimizer, power: float = 0.9, warmup: float = 0, warmup_start: float = 0.0) -> None:
        self.power = power
        super().__init__(optimizer, warmup, warmup_start)

    def shape(self, progress: float) -> float:
        return (1 - progress) ** self.power


class SawtoothSchedule(PolynomialSchedule):
    """Two teeth: first decoder and head alone, then the whole net (nnssl's fine-tuning of a pre-trained encoder).

    The first part of the run has ``decoder`` steps. The rate of decoder and head rises linearly in its first half and
    falls to 0 in its second, by ``(1 - progress) ** power``. The encoder stays frozen; this needs
    ``common.handlers.FrozenEncoder`` among the trainer's handlers. After that, all groups rise for ``warmup`` steps and
    fall until the end of the run.

    Args:
        optimizer: with groups from ``parameter_groups``, which mark the encoder.
        power: exponent.
        decoder: steps of the first part; a fraction of all steps or a number of steps, as ``warmup``.
        warmup, warmup_start: of ``RunSchedule``; the start applies to both teeth.

    Raises:
        ValueError: none or all of the groups belong to an encoder; ``decoder`` or ``warmup`` is invalid.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        power: float = 0.9,
        decoder: float = 0.05,
        warmup: float = 0.05,
        warmup_start: float = 0.02,
    ) -> None:
        _check_length("decoder", decoder)
        encoder = [group.get("part") == "encoder" for group in optimizer.param_groups]
        if not any(encoder) or all(encoder):
            raise ValueError(
                "a sawtooth trains the decoder first and needs an optimiser with a separate encoder group: give it "
                "the groups of common.optimizers.parameter_groups."
            )
        self.decoder = decoder
        super().__init__(optimizer, power, warmup, warmup_start)

    @property
    def encoder_rests(self) -> bool:  # type: ignore[override]
        return self.total is None or self.last_epoch < self.steps(self.decoder)

    def factor(self, step: int) -> float:
        if self.total is None:
            return super().factor(step)
        first = self.steps(self.decoder)
        if step < first:
            return self.tooth(step, first / 2, first)
        return self.tooth(step - first, self.steps(self.warmup), self.total - first)

    def group_factor(self, step: int, group: Mapping[str, Any]) -> float:
        resting = group.get("part") == "encoder" and step < self.steps(self.decoder)
        return 0.0 if resting else self.factor(step)

    def steps_to_full_rate(self) -> float:
        return self.steps(self.decoder) + self.steps(self.warmup)


class ExponentialSchedule(RunSchedule):
    """Multiply the rate by ``gamma`` over each of ``periods`` equal parts of the run, without jumps.

    ``periods=200`` matches a paper that trains 200 epochs, each with 0.99 times the previous rate: the rate is the same
    at the beginning of each epoch. A run of another length has the same curve.

    Args:
        optimizer, warmup, warmup_start: of ``RunSchedule``.
        gamma: factor per period.
        periods: number of periods in a run.
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


def _check_length(name: str, length: Any) -> None:
    whole = isinstance(length, int) and not isinstance(length, bool)
    if not ((whole and length >= 0) or (isinstance(length, float) and 0 <= length < 1)):
        raise ValueError(
            f"{name} is {length!r}; it must be a fraction of all steps (0.05) or a whole number of steps (20)."
        )
