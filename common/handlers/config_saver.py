from __future__ import annotations

import os
from pathlib import Path

from ignite.engine import Engine, Events

from ..checks import config_digest, running_config
from ..files import atomic_write
from ..json_files import to_json
from .event_file import EventFile

__all__ = ["ConfigSaver"]


class ConfigSaver:
    """Save a run's config files and overrides, merged, as a JSON file and as text in TensorBoard.

    The file is a complete config: ``python -m monai.bundle run --config_file FILE --meta_file configs/metadata.json``
    repeats the run, with the same ``config_digest``. Expressions are kept as written. The text is stored at the epoch
    at which the run began, 0 unless it was resumed.

    Both are written when the first epoch begins. By then every handler has started. So a run that a handler refuses, or
    that has nothing left to train, keeps the record of the run that made ``model.pt``.

    Outside of ``python -m monai.bundle run`` nothing is written: the maker of the workflow then has the config.

    Args:
        path: such as ``models/train_config.json``, replaced when a run's first epoch begins.
        log_dir: folder of the TensorBoard events.
    """

    def __init__(self, path: str | os.PathLike, log_dir: str | os.PathLike) -> None:
        self.path = Path(path).absolute()
        self.events = EventFile(log_dir)
        self._kept = False

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def _begin(self) -> None:
        self._kept = False

    def __call__(self, engine: Engine) -> None:
        config = None if self._kept else running_config()
        self._kept = True
        if config is None:
            return
        text = to_json(config, default=str)
        with atomic_write(self.path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        # Markdown: indented, a block is shown as it is.
        block = "".join(f"    {line}\n" for line in text.splitlines())
        self.events.writer.add_text("config", f"digest {config_digest()}\n\n{block}", engine.state.epoch - 1)
        self.events.writer.flush()
