from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from monai.utils import CommonKeys

__all__ = ["NonFiniteGuard", "batch_files"]


class NonFiniteGuard:
    """Stop training at the first loss that is NaN or infinite, before the step that would spoil the weights.

    Raises FloatingPointError, which names the epoch, the iteration and the files of the batch. It does not call
    ``terminate()``, which would fire COMPLETED and write a final encoder; the last checkpoint stays as it is. The
    weights are looked at when an epoch ends, since no loss follows the epoch's last step before it is saved.
    """

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.check_weights)

    def __call__(self, engine: Engine) -> None:
        output: Any = engine.state.output
        loss = output[CommonKeys.LOSS]
        if not bool(torch.isfinite(loss).all()):
            files = ", ".join(batch_files(engine.state.batch)) or "of unknown name"
            raise FloatingPointError(
                f"the loss is {loss.item()} in epoch {engine.state.epoch}, iteration {engine.state.iteration}, for "
                f"files {files}: look at these volumes (`python -m common.data check`), or lower the learning rate."
            )

    def check_weights(self, engine: Engine) -> None:
        network = getattr(engine, "network", None)
        for name, weights in network.named_parameters() if network is not None else ():
            if not bool(torch.isfinite(weights).all()):
                # Which files the step was for is not known here: ignite has let go of the batch.
                raise FloatingPointError(
                    f"the last step of epoch {engine.state.epoch} left {name} not finite: lower the learning rate, or "
                    "resume from the checkpoint of the epoch before."
                )


def batch_files(batch: Any) -> list[str]:
    """Names of the image files that a batch was read from, as far as its meta data tells."""
    image = batch.get(CommonKeys.IMAGE) if isinstance(batch, Mapping) else None
    names = getattr(image, "meta", {}).get("filename_or_obj", [])
    return sorted({names} if isinstance(names, str) else {str(name) for name in names})
