"""How a run that fails ends: with one sentence of this package, or the first cause."""

from __future__ import annotations

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
    """What this package says about an error that MONAI, ignite or a worker wrapped, None if it was not raised here."""
    return next((link.text for link in _chain(error) if link.is_ours), None)


def final_sentence(error: BaseException) -> str | None:
    """What the output ends with after an error: our own sentence, else the first cause; None if it says so itself."""
    sentence = own_sentence(error)
    if sentence is None:
        causes = list(_chain(error, causes_only=True))
        if len(causes) > 1:
            sentence = f"{causes[-1].name}: {causes[-1].text}"
    return sentence


def first_cause(error: BaseException) -> BaseException:
    """The error that others were raised from; itself where there is none."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _refusal(error: BaseException | None) -> str | None:
    """The sentence with which this package refused something, None of any other error, whose traceback says more.

    The statement has to be a ``raise`` in this package: what Python or a library finds there is a defect. Wrappers,
    such as MONAI's config parser, have to name the refusal as their cause: an error may also come on top of it.
    """
    for link in _chain(error, causes_only=True):
        if link.is_ours:
            return link.text if link.is_refusal else None
    return None


def _chain(error: BaseException | None, causes_only: bool = False) -> Iterator[_Raised]:
    """An error and those that it was raised from, or on top of, the outermost first."""
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        yield _Raised(type(error).__name__, type(error), str(error), frames[-1] if frames else None)
        wrapped = WRAPPED.match(error.args[0]) if error.args and isinstance(error.args[0], str) else None
        if wrapped:
            yield from _printed_chain(wrapped[1], causes_only)
            return
        error = error.__cause__ or (None if causes_only else error.__context__)


def _printed_chain(text: str, causes_only: bool) -> Iterator[_Raised]:
    """The same of a traceback that was printed: its blocks, between which stands how one led to the next."""
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


def _join_pools() -> None:
    """Wait for the threads of ``multiprocessing.pool.ThreadPool``, with which ``CacheDataset`` fills its cache.

    The pool does not: when one item fails, it lets go of its threads, daemons that are still at work on theirs. One
    that comes back to the interpreter while that is shutting down is ended by ``pthread_exit`` (Python before 3.14),
    which unwinds the C++ frames of torch, and these call ``std::terminate``: the process aborts after its sentence.
    """
    end = time.monotonic() + PATIENCE
    for thread in threading.enumerate():
        if isinstance(thread, DummyProcess):
            thread.join(max(0.0, end - time.monotonic()))
