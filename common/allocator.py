"""Memory allocation of the C library for training on a CPU."""

from __future__ import annotations

import ctypes
import logging
import platform

__all__ = ["keep_freed_memory"]

logger = logging.getLogger(__name__)

# Parameters of mallopt(3), from malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def keep_freed_memory(enabled: bool = True) -> bool:
    """Keep freed memory in the process instead of returning it to the system immediately.

    For every tensor of a few megabytes glibc asks the system for fresh pages and returns them when the tensor is freed,
    so a training step on a CPU spends much of its time on page faults (ratios in ``benchmarks/RESULTS.md``). Kept
    memory is reused without page faults; in exchange the process holds more of it (1.6 times as much in a step of Swin
    UNETR). The setting holds for the whole process and cannot be undone, so a server that also does other work should
    not call it. Results do not change.

    Args:
        enabled: do nothing if false; configs set this if the net runs on a GPU.

    Returns:
        Whether it is in force; false, with a line in the log, if the C library is not glibc.
    """
    if not enabled:
        return False
    if platform.libc_ver()[0] != "glibc":
        logger.info("keep_freed_memory does nothing here: the C library is not glibc.")
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, 64 << 20))
    return all([mallopt(parameter, value) == 1 for parameter, value in settings])
