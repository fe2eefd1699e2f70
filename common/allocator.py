"""How the C library hands out memory to training on a CPU."""

from __future__ import annotations

import ctypes
import logging
import platform

__all__ = ["keep_freed_memory"]

logger = logging.getLogger(__name__)

# Parameters of mallopt(3), from malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def keep_freed_memory(enabled: bool = True) -> bool:
    """Keep freed memory in the process instead of giving it back to the system at once.

    For every tensor of a few megabytes glibc asks the system for fresh pages and returns them when the tensor is
    freed, so a training step on a CPU spends much of its time on page faults (ratios in ``benchmarks/RESULTS.md``).
    Kept memory is reused without them; in exchange the process holds more of it (1.6 times as much in a step of Swin
    UNETR). It is in force for the whole process from the call on, and there is no way back, so a server that runs other
    work beside should not call it. Results do not change.

    Args:
        enabled: do nothing if false; what configs set where the net runs on a GPU.

    Returns:
        Whether it is in force: false where the C library is not glibc, which is logged.
    """
    if not enabled:
        return False
    if platform.libc_ver()[0] != "glibc":
        logger.info("keep_freed_memory does nothing here: the C library is not glibc.")
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, 64 << 20))
    return all([mallopt(parameter, value) == 1 for parameter, value in settings])
