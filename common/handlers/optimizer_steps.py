from __future__ import annotations

import math
from typing import Any

from ignite.engine import Engine

__all__ = ["is_optimizer_step", "optimizer_steps"]


def is_optimizer_step(engine: Engine) -> bool:
    """Whether the optimiser steps in this iteration."""
    accumulation = getattr(engine, "accumulation_steps", 1)
    if accumulation == 1:
        return True
    state: Any = engine.state
    length = state.epoch_length
    if length is None:
        return state.iteration % accumulation == 0
    place = (state.iteration - 1) % length + 1
    return place % accumulation == 0 or place == length


def optimizer_steps(engine: Engine) -> int:
    """Number of optimiser steps of the whole run, known once it has started.

    Raises:
        ValueError: the length of an epoch is not known.
    """
    state: Any = engine.state
    if state.epoch_length is None or state.max_epochs is None:
        raise ValueError("the length of the run is not known: give the trainer `epoch_length` and `max_epochs`.")
    return state.max_epochs * math.ceil(state.epoch_length / getattr(engine, "accumulation_steps", 1))
