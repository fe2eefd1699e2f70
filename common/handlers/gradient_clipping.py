from __future__ import annotations

from typing import Any

import torch
from ignite.engine import Engine
from monai.engines.utils import IterationEvents

from .optimizer_steps import is_optimizer_step

__all__ = ["GradientClipping"]


class GradientClipping:
    """Scale the gradients down to a norm, between the backward pass and the optimiser's step of MONAI's trainer.

    Args:
        max_norm: largest L2 norm of all gradients together; 12 in nnU-Net.

    Raises:
        ValueError: ``max_norm`` is not larger than 0.
    """

    def __init__(self, max_norm: float = 12.0) -> None:
        if not max_norm > 0:
            raise ValueError(f"max_norm must be larger than 0, got {max_norm}.")
        self.max_norm = max_norm

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        if not is_optimizer_step(engine):  # gradients are still being added up
            return
        trainer: Any = engine
        if getattr(trainer, "scaler", None) is not None:  # with AMP gradients are scaled until here
            trainer.scaler.unscale_(trainer.optimizer)
        torch.nn.utils.clip_grad_norm_(trainer.network.parameters(), self.max_norm)
