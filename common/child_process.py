"""Commands as child processes: environment, end, and reason of a failure."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from .checks import FULL_LOG, REFUSED
from .peak_memory import own_memory

__all__ = ["Child", "PlainChild", "child_environment", "die_with_parent", "failure_reason"]

PR_SET_PDEATHSIG = 1  # prctl(2)


def _end_with_parent() -> None:
    """Runs in the child between fork and exec, where it must not import or allocate anything."""
    assert _prctl is not None
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
die_with_parent: Callable[[], None] | None = _end_with_parent if _prctl else None
"""``preexec_fn`` that ends a child when its parent is killed, so the next call does not find it running (Linux)."""


class Child(Protocol):
    """A command that runs.

    Attributes:
        pid: of the process.
        lender: the process whose memory it shares as its fork, or None.
        largest: after its end, bytes that the largest of its processes had; 0 where that is not known.
    """

    pid: int
    lender: int | None
    largest: int

    def wait(self, patience: float | None = None) -> int | None:
        """Its exit status, or minus the signal that ended it; None where it still runs after ``patience`` seconds."""


class PlainChild:
    """A command as a process of its own, which ends with this one (``start_child`` has the arguments)."""

    def __init__(
        self,
        words: Sequence[str],
        output: int,
        environment: Mapping[str, str],
        descriptors: Sequence[int] = (),
        own_group: bool = True,
    ) -> None:
        self.lender: int | None = None
        self.largest = 0
        self._inherited = own_memory()
        self._process = subprocess.Popen(
            list(words),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=own_group,
            pass_fds=descriptors,
            preexec_fn=die_with_parent,
        )
        self.pid = self._process.pid

    def wait(self, patience: float | None = None) -> int | None:
        process = self._process
        if not hasattr(os, "wait4"):  # Windows
            return process.wait(patience)
        end = time.monotonic() + (patience or 0.0)
        while process.returncode is None:
            pid, status, usage = os.wait4(self.pid, 0 if patience is None else os.WNOHANG)
            if pid:
                process.returncode = os.waitstatus_to_exitcode(status)
                largest = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
                # what is no more may be this process' own size at the fork, which the system counts in
                self.largest = largest if largest > 1.1 * self._inherited else 0
            elif time.monotonic() > end:
                break
            else:
                time.sleep(0.1)
        return process.returncode


def child_environment() -> dict[str, str]:
    """Environment of a run: it finds this process's `common` from any working folder, and its log has all lines."""
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    ours = {"PYTHONWARNINGS": "ignore", "PYTHONUNBUFFERED": "1", "PYTHONPATH": path, FULL_LOG: "full"}
    return {**os.environ, **ours}


def failure_reason(log: Path, begin: int, code: int) -> str:
    """One sentence on why a child failed, from the end of its output."""
    if code == -getattr(signal, "SIGKILL", 9):  # Windows has none
        return f"killed by the system, most likely out of memory (see {log.name})"
    if code < 0:
        return f"ended by signal {signal.Signals(-code).name} (see {log.name})"
    with log.open("rb") as file:
        file.seek(begin)
        text = file.read().decode("utf-8", "replace")
    if re.search(r"OutOfMemoryError|CUDA out of memory|can't allocate memory|std::bad_alloc", text):
        return f"out of memory (see {log.name}); lower batch_size, or the size of the network"
    if "ChildFailedError" in text:  # torchrun's own summary comes last and says nothing of the cause
        found = re.search(rf"^\[rank\d+\]: {REFUSED} .*\n+\[rank\d+\]: (.*)$", text, re.MULTILINE)
        found = found or re.search(r"^\[rank\d+\]: (\w*(?:Error|Exception|Exit): .*)$", text, re.MULTILINE)
        if found:
            return f"{found[1]} (see {log.name})"
    # The bundles' first step sees to it that the output ends with what went wrong, after an empty line.
    paragraphs = [part.strip() for part in text.strip().split("\n\n") if part.strip()]
    last = paragraphs[-1].splitlines() if paragraphs else []
    if len(last) > 1 and (last[0].startswith("Traceback") or any("  File " in line for line in last)):
        last = last[-1:]
    reason = " ".join(line.strip() for line in last[-6:])
    return f"{reason or f'exit status {code}'} (see {log.name})"
