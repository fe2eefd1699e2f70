"""Large predictions of whole volumes, kept in memory-mapped files so that only the parts in use take memory."""

from __future__ import annotations

import logging
import math
import mmap
import os
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path

import torch

__all__ = ["drop_pages", "gathered"]

logger = logging.getLogger(__name__)

FILE_BYTES = 2**28
"""Size in bytes from which a prediction is kept in a file."""
FOLDER = "/var/tmp"
"""Folder of the file if TMPDIR is not set. Not `/tmp`, which is in memory on many systems."""

_files: weakref.WeakValueDictionary[int, _Map] = weakref.WeakValueDictionary()


class _Map(mmap.mmap):
    """A memory map that supports weak references."""


def gathered(
    shape: Sequence[int], dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Make a tensor of zeros for a network's prediction of a whole volume.

    From 256 MiB on, a tensor on the CPU of a Linux machine is kept in an unnamed file in ``TMPDIR`` (by default
    ``/var/tmp``). The file disappears with the tensor. ``drop_pages`` frees the memory of the parts that were used. If
    the disk has no room, the tensor is kept in memory. If a GPU has no room, the tensor is on the CPU.
    """
    size = math.prod(shape) * dtype.itemsize
    device = torch.device(device)
    if device.type == "cuda" and 2 * size > torch.cuda.mem_get_info(device)[0]:  # later steps need memory, too
        logger.info("the GPU has no room for a prediction of %.1f GB, which is gathered on the CPU.", size / 1e9)
        device = torch.device("cpu")
    if device.type == "cpu" and size >= FILE_BYTES and hasattr(os, "posix_fallocate"):
        folder = os.environ.get("TMPDIR") or (FOLDER if os.access(FOLDER, os.W_OK) else tempfile.gettempdir())
        try:
            return _in_file(Path(folder), size).view(dtype).view(*shape)
        except OSError as error:
            logger.warning(
                "a prediction of %.1f GB is kept in memory, since %s cannot hold it (%s): set TMPDIR to a folder with "
                "room.",
                size / 1e9,
                folder,
                error.strerror or error,
            )
    return torch.zeros(*shape, dtype=dtype, device=device)


def drop_pages(tensor: torch.Tensor) -> None:
    """Free the memory of a ``gathered`` tensor's used parts. The values stay in the file."""
    file = _files.get(tensor.untyped_storage().data_ptr()) if tensor.device.type == "cpu" else None
    if file is not None:
        file.madvise(mmap.MADV_DONTNEED)


def _in_file(folder: Path, size: int) -> torch.Tensor:
    with tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, size)  # otherwise a full disk would kill the process at the first write
        mapped = _Map(file.fileno(), size)
    made = torch.frombuffer(mapped, dtype=torch.uint8)
    _files[made.untyped_storage().data_ptr()] = mapped
    return made
