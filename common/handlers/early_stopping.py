from __future__ import annotations

import logging
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events

__all__ = ["EarlyStopping"]

logger = logging.getLogger(__name__)


class EarlyStopping:
    """End training when validation has not improved for a number of epochs.

    It keeps no counter. It compares the epoch with that of the evaluator's best metric, which
    ``common.handlers.Checkpoint`` saves. So a resumed run stops at the same epoch as an uninterrupted one, and a
    stopped run does not train again. Put it after the ``ValidationHandler`` and before the ``Checkpoint``.

    Args:
        evaluator: MONAI evaluator whose key metric is watched.
        patience: epochs, not validations; None never stops.

    Raises:
        ValueError: ``patience`` is less than 1.
    """

    def __init__(self, evaluator: Engine, patience: int | None) -> None:
        if patience is not None and patience < 1:
            raise ValueError(f"patience is {patience}; it must be 1 or more epochs, or null for no early stopping.")
        self.evaluator, self.patience = evaluator, patience

    def attach(self, engine: Engine) -> None:
        if self.patience is not None:
            engine.add_event_handler(Events.EPOCH_STARTED, self.before_epoch)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        self._stop_after(engine, engine.state.epoch)

    def before_epoch(self, engine: Engine) -> None:
        """Stop a resumed run that was stopped before; not at its start, before the checkpoint is loaded."""
        if self._stop_after(engine, engine.state.epoch - 1):
            engine.state.epoch -= 1  # counted already, but it does not take place

    def _stop_after(self, engine: Engine, epoch: int) -> bool:
        best: Any = getattr(self.evaluator.state, "best_metric_epoch", -1)
        if self.patience is None or best <= 0 or epoch - best < self.patience:
            return False
        if idist.get_rank() == 0:
            logger.info(
                "stopped after epoch %d: no better validation since epoch %d (patience %d).", epoch, best, self.patience
            )
        engine.terminate()
        return True
