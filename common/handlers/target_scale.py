from __future__ import annotations

import logging
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn

__all__ = ["TargetScale"]

logger = logging.getLogger(__name__)


class TargetScale:
    """Set the buffers ``mean`` and ``std`` of a regressor to the statistics of the target in the training list.

    This happens when training starts, so an evaluated net keeps the values of its state dict. A net without these
    buffers, such as a classifier, stays unchanged.

    Args:
        network: such as ``common.networks.MultiViewRegressor``; not wrapped by DDP.
        items: the training list.
        key: of the number.
    """

    def __init__(self, network: nn.Module, items: Sequence[Mapping[str, Any]], key: str = "label") -> None:
        self.network, self.items, self.key = network, items, key

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        buffers = dict(self.network.named_buffers())
        if not {"mean", "std"} <= set(buffers):
            return
        values = [float(item[self.key]) for item in self.items]
        # A single training item has no spread; its scale is then the unit.
        mean, std = statistics.fmean(values), statistics.pstdev(values) or 1.0
        with torch.no_grad():
            buffers["mean"].fill_(mean)
            buffers["std"].fill_(std)
        logger.info("target over %d training items: mean %.4g, standard deviation %.4g.", len(values), mean, std)
