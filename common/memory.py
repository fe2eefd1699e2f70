from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["available_memory"]

CGROUPS = (
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)
"""Files of a container's limit and of what it uses, below /sys/fs/cgroup: version 2, then 1."""


def available_memory() -> int | None:
    """Bytes that this process can still take without swapping; None where the system does not tell.

    The least of what the machine has free (with what it would drop from its cache of files) and of what the limit of a
    container leaves.
    """
    found = []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable:"))
        found.append(1024 * int(line.split()[1]))
    for limit, used, stat in CGROUPS:
        with suppress(OSError, ValueError):
            root = Path("/sys/fs/cgroup")
            free = int((root / limit).read_text()) - int((root / used).read_text())
            # Files in the cache count as used, and are dropped when memory is asked for.
            values = dict(line.split() for line in (root / stat).read_text().splitlines())
            found.append(max(0, free + int(values.get("inactive_file", 0))))
    if not found:
        with suppress(OSError, ValueError, AttributeError):
            found.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(found, default=None)
