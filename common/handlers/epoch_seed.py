from __future__ import annotations

import random

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data.utils import set_rnd

__all__ = ["EpochSeed"]


class EpochSeed:
    """Make all random state a function of (seed, epoch, rank), at the start of every epoch.

    It seeds the generators of Python, NumPy and torch and of the data set's transforms. A run resumed after epoch n
    then draws in epoch n + 1 the same numbers as an uninterrupted run. This needs loaders whose workers start
    with each epoch or draw as if they did (``common.data.DataLoader``), and an ``epoch_length`` set by the loader.

    Args:
        seed: of the run.
        fixed: ignore the epoch. An evaluator whose pretext draws masks then sees the same masks in every validation.
    """

    def __init__(self, seed: int, fixed: bool = False) -> None:
        self.seed = seed
        self.fixed = fixed

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        epoch = 0 if self.fixed else engine.state.epoch
        value = int(np.random.SeedSequence((self.seed, epoch, idist.get_rank())).generate_state(1)[0])
        random.seed(value)
        np.random.seed(value)
        torch.manual_seed(value)
        set_rnd(getattr(getattr(engine, "data_loader", None), "dataset", None), value)
