from __future__ import annotations

import io
import os
from typing import Any

import torch

from ..files import atomic_write

__all__ = ["atomic_torch_save"]


def atomic_torch_save(content: Any, path: str | os.PathLike) -> None:
    """``torch.save`` through a temporary file in the same folder: ``path`` is the old file or the whole new one."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic_write(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())
