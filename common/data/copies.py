from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["find_copies"]

BLOCK = 16_384
SMALLEST = 4096
"""Bytes below which files are not compared: they hold no scan, and two empty volumes are no leak."""


def find_copies(lists: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[tuple[str, str]]:
    """Images of one list that are, byte for byte, an image of another list under another name.

    Only files of equal size are read, and of those whole only the ones whose beginnings, middles and ends are equal, so
    that a list of different scans costs next to nothing. The same voxels in another file format, compressed anew or
    resampled are not found.

    Returns:
        for each copy the file and what is wrong with it. Files that are not there, and DICOM series, are passed over.
    """
    by_size: dict[int, list[tuple[str, str]]] = defaultdict(list)  # list and file
    for section, items in lists.items():
        for item in items:
            image = item["image"]
            for file in [image] if isinstance(image, str) else image:
                size = os.path.getsize(file) if os.path.isfile(file) else 0
                if size >= SMALLEST:
                    by_size[size].append((section, file))
    problems = []
    for files in by_size.values():
        for alike in _groups(files, _sample):
            for same in _groups(alike, _whole):
                (where, other), *rest = same
                problems += [
                    (file, f"in {section} is a copy of {other} in {where}: keep it in one list")
                    for section, file in rest
                    if section != where and os.path.realpath(file) != os.path.realpath(other)
                ]
    return problems


def _groups(files: Sequence[tuple[str, str]], key: Any) -> list[list[tuple[str, str]]]:
    """Files that have equal keys and are of more than one list."""
    groups = defaultdict(list)
    if len({section for section, _ in files}) > 1:
        for section, file in files:
            groups[key(file)].append((section, file))
    return [group for group in groups.values() if len({section for section, _ in group}) > 1]


def _sample(file: str) -> bytes:
    with open(file, "rb") as stream:
        parts = [stream.read(BLOCK)]
        size = os.fstat(stream.fileno()).st_size
        for start in (size // 2, size - BLOCK):
            stream.seek(max(start, 0))
            parts.append(stream.read(BLOCK))
    return b"".join(parts)


def _whole(file: str) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
