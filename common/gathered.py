"""Predictions of whole volumes that are larger than memory should hold: files of which memory has what is in use."""

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
"""Predictions of this size and more are kept in a file."""
FOLDER = "/var/tmp"
"""Where there is no TMPDIR: `/tmp` is in memory on many systems."""

_files: weakref.WeakValueDictionary[int, _Map] = weakref.WeakValueDictionary()


class _Map(mmap.mmap):
    """One that weak references may point to."""


def gathered(
    shape: Sequence[int], dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """A tensor of zeros for what a network says of a whole volume.

    From 256 MiB on, on the CPU of Linux, it lies in a file without a name in ``TMPDIR`` (else ``/var/tmp``), which is
    gone when the tensor is. ``drop_pages`` frees the memory of the parts that were used. Where the disk has no room for
    it, it is in memory. On a GPU that has no room for it, it is on the CPU.
    """
    size = math.prod(shape) * dtype.itemsize
    device = torch.device(device)
    if device.type == "cuda" and 2 * size > torch.cuda.mem_get_info(device)[0]:  # what is done with it takes its share
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
    """Free the memory that the used parts of a ``gathered`` tensor take; its values stay in the file."""
    file = _files.get(tensor.untyped_storage().data_ptr()) if tensor.device.type == "cpu" else None
    if file is not None:
        file.madvise(mmap.MADV_DONTNEED)


def _in_file(folder: Path, size: int) -> torch.Tensor:
    with tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, size)  # a page without room on the disk would end the process
        mapped = _Map(file.fileno(), size)
    made = torch.frombuffer(mapped, dtype=torch.uint8)
    _files[made.untyped_storage().data_ptr()] = mapped
    return made
