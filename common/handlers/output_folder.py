from __future__ import annotations

import logging
import os
from pathlib import Path

import ignite.distributed as idist
from ignite.engine import Engine, Events

__all__ = ["OutputFolder"]

logger = logging.getLogger(__name__)


class OutputFolder:
    """Log the full path of the output folder when a run ends.

    Args:
        folder: where the files are.
        what: start of the sentence, such as ``"label maps"``.
    """

    def __init__(self, folder: str | os.PathLike, what: str) -> None:
        self.folder, self.what = Path(folder).absolute(), what

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        if idist.get_rank() == 0:
            logger.info("%s: %s", self.what, self.folder)
