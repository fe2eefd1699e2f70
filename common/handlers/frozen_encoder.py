from __future__ import annotations

from typing import Any

from ignite.engine import Engine, Events
from torch import nn

from ..networks.encoder_layers import encoder_layers, layer_modules
from ..optimizers import RunSchedule

__all__ = ["FrozenEncoder"]


class FrozenEncoder:
    """Freeze an encoder while the rest of the network trains.

    No gradient reaches its parameters, so an optimiser skips them, including momentum and weight decay. Its modules
    compute as in evaluation: batch norms neither use nor update batch statistics, and nothing is dropped. The layers of
    ``common.networks.encoder_layers`` are frozen; a decoder in the encoder's file still trains. The state is set again
    at each iteration from the schedule alone, so a resumed run continues correctly.

    Args:
        encoder: part of the network, or a view on it.
        lr_scheduler: the encoder is frozen while its ``encoder_rests`` is true; None freezes it for the whole run.
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
        """Let it train again, except for parameters that did not train before."""
        for hook in self._hooks:
            hook.remove()
        for parameter in self._held:
            parameter.requires_grad_(True)
        self._hooks, self._held = [], []


def _evaluate(module: nn.Module, inputs: Any) -> None:
    module.training = False
