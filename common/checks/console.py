"""Keep off the console what MONAI and ignite log beside this package's own lines."""

from __future__ import annotations

import logging
import os
import re
import warnings

from .refusals import OnlyAtTheEnd

__all__ = ["FULL_LOG", "KNOWN_WARNINGS", "OnlyOnce", "drop_untrue_warnings", "quiet_console"]

FULL_LOG = "MONAI_TRANSFER_LOG"
"""Environment variable: ``full`` lets all lines through, as in the logs of ``common.compare`` and ``common.auto``."""

STATS = "monai.handlers.StatsHandler"
WORKFLOWS = "monai.bundle.workflows"

# Start of a logger's name -> messages that say again what another line says, or that say nothing to a user.
REPEATED = {
    # The progress bar has the epochs, and StatsHandler the scores.
    "ignite.engine.engine": re.compile(r"Engine run (?!is terminating)|Epoch\[\d+\] Complete|Got new best metric"),
    # The first line of a validation has the score; that of features is the representation monitor's.
    STATS: re.compile(r"Key metric: |Epoch\[\d+\] Metrics -- effective_rank: "),
    # The command that the user typed.
    "monai.bundle.scripts": re.compile(r"--- input summary|> |---\s*$"),
}

KNOWN_WARNINGS = (
    # MONAI's own surface distance calls it with the argument that MONAI deprecates.
    r"monai\.metrics\.utils get_mask_edges:always_return_as_numpy",
)
"""Starts of warnings about calls inside a library, which a user of the library cannot change."""

UNTRUE = re.compile(r"Not all config files are in ")


class OnlyOnce(logging.Filter):
    """Drop the lines of ``REPEATED``. Errors pass."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR:
            return True
        found = (pattern for name, pattern in REPEATED.items() if record.name.startswith(name))
        return not any(pattern.match(record.getMessage()) for pattern in found)


def quiet_console() -> None:
    """Let a run's console show each fact once.

    Handlers of the root logger write no refusal, which ``end_with_sentence`` does. Those of them that write to a stream
    leave out the lines of ``REPEATED``; a log file that a user's ``logging.conf`` adds gets all of them. With
    ``MONAI_TRANSFER_LOG=full`` in the environment the streams do, too.

    MONAI's ``StatsHandler`` logs past the root logger, in a format of its own. It is given the root's handlers.
    """
    root = logging.getLogger()
    full = os.environ.get(FULL_LOG) == "full"
    for handler in root.handlers:
        _add_filter(handler, OnlyAtTheEnd)
        if not full and isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            _add_filter(handler, OnlyOnce)
    if root.handlers and STATS not in root.manager.loggerDict:
        stats = logging.getLogger(STATS)
        stats.propagate = False
        stats.setLevel(logging.INFO)
        for handler in root.handlers:
            stats.addHandler(handler)
    if full:
        return
    _add_filter(logging.getLogger("monai.bundle.scripts"), OnlyOnce)  # it has a handler of its own
    for start in KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=start)


def drop_untrue_warnings() -> None:
    """Drop MONAI's warning that config files lie in several folders, as all overlays of a bundle do.

    It comes before the first line of a config, so only a process of this package can do this.
    """
    if WORKFLOWS in logging.root.manager.loggerDict:  # MONAI gives no handler to a logger that exists before its import
        logging.getLogger(WORKFLOWS).addFilter(lambda record: not UNTRUE.match(record.getMessage()))


def _add_filter(to: logging.Filterer, kind: type[logging.Filter]) -> None:
    if not any(isinstance(one, kind) for one in to.filters):
        to.addFilter(kind())
