from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["EventFile"]


class EventFile:
    """A handler's TensorBoard events, in a file that is made on the first write.

    Args:
        log_dir: folder of the run's event files; the files of several handlers form one run.
    """

    def __init__(self, log_dir: str | os.PathLike) -> None:
        self.log_dir = os.path.abspath(log_dir)
        self._writer: SummaryWriter | None = None

    @property
    def writer(self) -> SummaryWriter:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(self.log_dir)
        return self._writer
