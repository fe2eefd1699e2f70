from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from common import allocator

# Pages that the system hands out while a buffer is made and dropped again and again.
FAULTS = """
import ctypes, resource, sys
from common.allocator import keep_freed_memory
assert keep_freed_memory(sys.argv[1] == "True") == (sys.argv[1] == "True")
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
size = 64 << 20
for turn in range(6):
    if turn == 1:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    buffer = libc.malloc(size)
    ctypes.memset(buffer, 1, size)
    libc.free(buffer)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_memory_is_reused_without_new_pages():
    faults = {}
    for enabled in (False, True):
        command = [sys.executable, "-c", FAULTS, str(enabled)]
        faults[enabled] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert faults[True] < faults[False] / 10


def test_another_c_library_is_left_alone_and_said(monkeypatch, caplog):
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("", ""))
    with caplog.at_level("INFO"):
        assert allocator.keep_freed_memory() is False
    assert "not glibc" in caplog.text
