from __future__ import annotations

from typing import Any

from ignite.engine import Engine, Events
from torch import nn

from ..networks.encoder_layers import encoder_layers, layer_modules
from ..optimizers import RunSchedule

__all__ = ["FrozenEncoder"]


class FrozenEncoder:
    """Leave an encoder as it is while the rest of the network trains.

    No gradient reaches its parameters, so that an optimiser passes over them, momentum and weight decay included, and
    its modules compute as in evaluation: batch norms neither take nor move statistics, nothing is dropped. What is
    frozen are the layers of ``common.networks.encoder_layers``; a decoder that goes along in the encoder's file trains.
    It says so anew at each iteration, from the schedule's state alone, so that a resumed run goes on as it was.

    Args:
        encoder: part of the network, or a view on it.
        lr_scheduler: the encoder rests while its ``encoder_rests`` says so; None for the whole run.
    """

    def __init__(self, encoder: nn.Module, lr_scheduler: RunSchedule | None = None) -> None:
        self.encoder = encoder
        self.lr_scheduler = lr_scheduler
        self._held: list[nn.Parameter] = []
        self._hooks: list[Any] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_STARTED, self)
        engine.add_event_handler(Events.COMPLETED, self.release)

    def __call__(self, engine: Engine) -> None:
        if self.lr_scheduler is None or self.lr_scheduler.encoder_rests:
            self.hold()
        else:
            self.release()

    def hold(self) -> None:
        """Freeze it."""
        if self._hooks:
            return
        # By hooks, since MONAI's trainer puts the whole network in training mode at each iteration.
        self._hooks = [module.register_forward_pre_hook(_evaluate) for module in layer_modules(self.encoder)]
        parameters = (parameter for layer in encoder_layers(self.encoder) for parameter in layer.values())
        self._held = [parameter for parameter in parameters if parameter.requires_grad]
        for parameter in self._held:
            parameter.requires_grad_(False)
            parameter.grad = None

    def release(self) -> None:
        """Let it train again, but for what did not train before."""
        for hook in self._hooks:
            hook.remove()
        for parameter in self._held:
            parameter.requires_grad_(True)
        self._hooks, self._held = [], []


def _evaluate(module: nn.Module, inputs: Any) -> None:
    module.training = False
