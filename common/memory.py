from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["RUNS_AT_ONCE", "available_memory"]

RUNS_AT_ONCE = "COMMON_RUNS_AT_ONCE"
"""Environment variable: how many runs this machine has at a time, which share its memory."""

ROOT = Path("/sys/fs/cgroup")
CGROUP = Path("/proc/self/cgroup")
NAMES = {
    "": ("", "memory.max", "memory.current"),
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
}
"""By controller in /proc/self/cgroup (version 2, then 1): folder below /sys/fs/cgroup, files of a limit and its use."""


def available_memory() -> int | None:
    """Bytes that this process can still use without swapping; None if the system does not report it.

    It is the smaller of the machine's free memory (including its file cache) and the rest of a container's limit.
    """
    found = []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable:"))
        found.append(1024 * int(line.split()[1]))
    for folder, limit, used in _groups():
        with suppress(OSError, ValueError):
            free = int((folder / limit).read_text()) - int((folder / used).read_text())
            # Files in the cache count as used, and are dropped when memory is asked for.
            values = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            found.append(max(0, free + int(values.get("total_inactive_file", values.get("inactive_file", 0)))))
    if not found:
        with suppress(OSError, ValueError, AttributeError):
            found.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(found, default=None)


def _groups() -> list[tuple[Path, str, str]]:
    """The control groups that limit this process, such as a Slurm job, and all their parents."""
    paths = {"": "/", "memory": "/"}
    with suppress(OSError, ValueError):
        for line in CGROUP.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            paths |= {name: path for name in controllers.split(",") if name in NAMES}
    found = []
    for name, path in paths.items():
        below, limit, used = NAMES[name]
        group = Path(path.lstrip("/"))
        found += [(ROOT / below / one, limit, used) for one in (group, *group.parents)]
    return found
