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

    It raises FloatingPointError with the epoch, the iteration and the files of the batch. It does not call
    ``terminate()``, which would fire COMPLETED and write a final encoder. The last checkpoint stays unchanged. The
    weights are checked at the end of each epoch, since no loss is computed between the last step and the save.
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
    """Names of the image files of a batch, as far as its metadata has them."""
    image = batch.get(CommonKeys.IMAGE) if isinstance(batch, Mapping) else None
    names = getattr(image, "meta", {}).get("filename_or_obj", [])
    return sorted({names} if isinstance(names, str) else {str(name) for name in names})
