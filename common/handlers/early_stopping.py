from __future__ import annotations

import logging
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events

__all__ = ["EarlyStopping"]

logger = logging.getLogger(__name__)


class EarlyStopping:
    """End training when validation has not improved for a number of epochs.

    It keeps no count of its own but compares the epoch with that of the evaluator's best metric, which
    ``common.handlers.Checkpoint`` keeps as well: a resumed run stops where the uninterrupted one does. It stands after
    the ``ValidationHandler`` and before the ``Checkpoint``.

    Args:
        evaluator: MONAI evaluator whose key metric is watched.
        patience: epochs, not validations; None never stops.

    Raises:
        ValueError: ``patience`` is less than 1.
    """

    def __init__(self, evaluator: Engine, patience: int | None) -> None:
        if patience is not None and patience < 1:
            raise ValueError(f"patience is {patience}; it has to be 1 or more epochs, or null for no early stopping.")
        self.evaluator, self.patience = evaluator, patience

    def attach(self, engine: Engine) -> None:
        if self.patience is not None:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        best: Any = getattr(self.evaluator.state, "best_metric_epoch", -1)
        epoch = engine.state.epoch
        if self.patience is not None and best > 0 and epoch - best >= self.patience:
            if idist.get_rank() == 0:
                logger.info(
                    "stopped after epoch %d: no better validation since epoch %d (patience %d).",
                    epoch,
                    best,
                    self.patience,
                )
            engine.terminate()
