"""Peak memory of a command: of all its processes together, and on GPUs."""

from __future__ import annotations

import atexit
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

__all__ = ["GPU_RECORD", "PeakMemory", "gpu_peak", "own_memory", "record_gpu_peak", "tree_memory"]

GPU_RECORD = "COMMON_GPU_RECORD"
"""Environment variable: path prefix of the files with the GPU memory of a run's processes."""

FIRST_PAUSE = 0.05


class PeakMemory:
    """Watch a process and its descendants in a thread, as a context: ``with PeakMemory(pid) as peak``.

    It measures once a second, more often at first, and less often if that would take more than a hundredth of the time.
    So it misses a peak between two measurements. Only Linux reports memory shared by processes; elsewhere ``bytes``
    stays 0.

    Args:
        lender: the process whose fork it is: what they share counts as the fork's.
    """

    def __init__(self, pid: int, lender: int | None = None, pause: float = 1.0) -> None:
        self.pid, self.lender, self.pause, self.bytes = pid, lender, pause, 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        pause = FIRST_PAUSE
        while not self._ended.wait(pause):
            began = time.monotonic()
            lent = _share(self.lender, own=False) if self.lender else 0
            self.bytes = max(self.bytes, tree_memory(self.pid) + lent)
            pause = max(min(self.pause, 2 * pause), 100 * (time.monotonic() - began))


def tree_memory(pid: int) -> int:
    """Bytes held by a process and its descendants; shared memory, such as a cache, counts once."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):  # it has ended meanwhile
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found, more = {pid}, {pid}
    while more:
        more = {child for child, parent in parents.items() if parent in more} - found
        found |= more
    return sum(map(_share, found))


def own_memory() -> int:
    """Bytes of this process in memory; 0 if the system does not report it (only Linux does)."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _share(pid: int, own: bool = True) -> int:
    """Of each part that a process shares with others what falls to it, with its own memory or without."""
    parts = {}
    with suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
            name, size = line.split()[:2]
            parts[name] = 1024 * int(size)
    private = 0 if own else parts.get("Private_Clean:", 0) + parts.get("Private_Dirty:", 0)
    return parts.get("Pss:", 0) - private


def record_gpu_peak() -> None:
    """Write the peak of this process's reserved GPU memory at its end, if ``GPU_RECORD`` is set."""
    start = os.environ.get(GPU_RECORD)
    if start:
        atexit.register(_write_gpu_peak, Path(f"{start}-{os.getpid()}"))


def _write_gpu_peak(path: Path) -> None:
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        peak = sum(torch.cuda.max_memory_reserved(number) for number in range(torch.cuda.device_count()))
        with suppress(OSError):
            path.write_text(str(peak))


def gpu_peak(start: Path) -> int | None:
    """Sum of what all processes of a run wrote, in bytes; removes the files. None if no process had a GPU."""
    found = []
    for path in start.parent.glob(f"{start.name}-*"):
        with suppress(ValueError):
            found.append(int(path.read_text()))
        path.unlink()
    return sum(found) if found else None
