from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from torch import nn

from .files import atomic_torch_save

__all__ = ["BestModelSaver", "best_metric", "is_new_best"]

logger = logging.getLogger(__name__)


class BestModelSaver:
    """Write a network's state dict, atomically, whenever the evaluator it is attached to reaches a new best metric.

    Args:
        path: such as ``models/model.pt``; a plain state dict, as MONAI's tools and MONAI Label load it.
        network: the network, not wrapped by DDP. Rank 0 writes.
    """

    def __init__(self, path: str | os.PathLike, network: nn.Module) -> None:
        self.path = Path(path).absolute()
        self.network = network

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        if is_new_best(engine) and idist.get_rank() == 0:
            atomic_torch_save(self.network.state_dict(), self.path)
            logger.info("%s: epoch %d, %s %.4f.", self.path, engine.state.epoch, *best_metric(engine))


def is_new_best(engine: Engine) -> bool:
    """Whether the evaluation that just completed gave a MONAI evaluator's best key metric so far."""
    state: Any = engine.state  # MONAI adds attributes to ignite's state
    return state.best_metric_epoch == state.epoch


def best_metric(engine: Engine) -> tuple[str, float]:
    """Name and best value so far of a MONAI evaluator's key metric."""
    state: Any = engine.state
    return state.key_metric_name, float(state.best_metric)
