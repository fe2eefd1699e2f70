"""End a failed run with one sentence of this package, or with the first cause."""

from __future__ import annotations

import logging
import os
import pydoc
import re
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from multiprocessing.dummy import DummyProcess
from pathlib import Path
from typing import Any, NamedTuple

PATIENCE = 60.0
"""Seconds that a failed run waits for the threads of a pool, each of which is at most one volume from its end."""
REFUSED = "The run was refused"
REFUSALS = (ValueError, OSError, RuntimeError, FloatingPointError, ImportError)
"""What a sentence for the user is raised as; other kinds say that a program is wrong."""
TRACEBACK = "MONAI_TRANSFER_TRACEBACK"
"""Environment variable that brings back the traceback of a refusal."""
# What torch re-raises an error of a DataLoader's worker with: from that process comes the printed traceback alone.
WRAPPED = re.compile(r"Caught \w+ [^\n]*\.\nOriginal (Traceback \(.*)", re.DOTALL)
PRINTED = re.compile(
    r"Traceback \([^\n]*\):\n(?P<frames>(?:[ \t][^\n]*\n)*)(?P<kind>[\w.<>]+)(?:: (?P<text>.*))?", re.DOTALL
)
CAUSED = "The above exception was the direct cause of the following exception:"
MET = "During handling of the above exception, another exception occurred:"


class _Raised(NamedTuple):
    """An error, of this process or of a worker."""

    name: str
    kind: Any  # its class, None where that of a worker's cannot be found
    text: str
    frame: traceback.FrameSummary | None  # where it was raised

    @property
    def is_ours(self) -> bool:
        package = Path(__file__).resolve().parents[1]
        return self.frame is not None and Path(self.frame.filename).resolve().is_relative_to(package)

    @property
    def is_refusal(self) -> bool:
        meant = isinstance(self.kind, type) and issubclass(self.kind, REFUSALS)
        meant = meant and not issubclass(self.kind, NotImplementedError)
        return meant and self.frame is not None and (self.frame.line or "").startswith("raise ")


def own_sentence(error: BaseException | None) -> str | None:
    """This package's sentence inside an error that MONAI, ignite or a worker wrapped; None if it has none."""
    return next((link.text for link in _chain(error) if link.is_ours), None)


def final_sentence(error: BaseException) -> str | None:
    """The last line of the output after an error: our sentence, else the first cause; None if the error says it."""
    sentence = own_sentence(error)
    if sentence is None:
        causes = list(_chain(error, causes_only=True))
        if len(causes) > 1:
            sentence = f"{causes[-1].name}: {causes[-1].text}"
    return sentence


def first_cause(error: BaseException) -> BaseException:
    """The error that the others were raised from; the error itself if there is none."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _refusal(error: BaseException | None) -> str | None:
    """The sentence of a refusal by this package. None for any other error, since its traceback says more.

    Only a ``raise`` statement in this package counts: an error that Python or a library raises there is a defect. A
    wrapper, such as MONAI's config parser, must name the refusal as its cause, since an unrelated error may follow a
    refusal.
    """
    for link in _chain(error, causes_only=True):
        if link.is_ours:
            return link.text if link.is_refusal else None
    return None


def _chain(error: BaseException | None, causes_only: bool = False) -> Iterator[_Raised]:
    """An error and the errors that it was raised from, or raised while handling; the outermost comes first."""
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        yield _Raised(type(error).__name__, type(error), str(error), frames[-1] if frames else None)
        wrapped = WRAPPED.match(error.args[0]) if error.args and isinstance(error.args[0], str) else None
        if wrapped:
            yield from _printed_chain(wrapped[1], causes_only)
            return
        error = error.__cause__ or (None if causes_only else error.__context__)


def _printed_chain(text: str, causes_only: bool) -> Iterator[_Raised]:
    """The same for a printed traceback, from its blocks and the lines between them that say how one led to the next."""
    first, *others = re.split(rf"\n\n({CAUSED}|{MET})\n\n", text)
    blocks = [first, *others[1::2]]
    for number in reversed(range(len(blocks))):
        # Indented lines are frames and their code; what follows them is the error, of any number of lines.
        found = PRINTED.match(blocks[number])
        if found is None:
            return
        places = re.findall(r'^  File "(.*)", line (\d+), in (.*)$', found["frames"], re.MULTILINE)
        frame = traceback.FrameSummary(places[-1][0], int(places[-1][1]), places[-1][2]) if places else None
        name = found["kind"]
        yield _Raised(name.rpartition(".")[2], pydoc.locate(name), (found["text"] or "").rstrip("\n"), frame)
        if causes_only and number > 0 and others[2 * number - 2] != CAUSED:
            return


def end_with_sentence(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    refused = _refusal(error)
    if refused is None or os.environ.get(TRACEBACK):
        sys.__excepthook__(kind, error, trace)
    else:
        print(f"\n{REFUSED} ({TRACEBACK}=1 in the environment shows where).", file=sys.stderr)
    _join_pools()
    sentence = refused or final_sentence(error)
    if sentence:
        print(f"\n{sentence}", file=sys.stderr)


class OnlyAtTheEnd(logging.Filter):
    """Drop the log lines with which ignite and MONAI repeat a refusal, whose sentence ends the output anyway."""

    REPEATED = re.compile(r"(Engine|Current) run is terminating due to exception: |Exception: ")

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is written; both libraries log while they handle the error."""
        if record.levelno < logging.ERROR or os.environ.get(TRACEBACK) or not self.REPEATED.match(record.getMessage()):
            return True
        return _refusal(sys.exc_info()[1]) is None


def _join_pools() -> None:
    """Wait for the threads of ``multiprocessing.pool.ThreadPool``, which fill the cache of ``CacheDataset``.

    The pool does not wait. When one item fails, the pool drops its threads, which are daemons and still work on their
    items. If a thread returns to the interpreter during shutdown, Python before 3.14 ends it with ``pthread_exit``.
    That unwinds the C++ frames of torch, which call ``std::terminate``, and the process aborts after its last message.
    """
    end = time.monotonic() + PATIENCE
    for thread in threading.enumerate():
        if isinstance(thread, DummyProcess):
            thread.join(max(0.0, end - time.monotonic()))
