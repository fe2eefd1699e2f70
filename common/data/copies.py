"""Find scans with the same content under other names, compressed or not.

The content of a `.gz` file is its unpacked content. Two scans are the same if their contents are equal to the byte. The
same voxels in another format or type, or resampled, are not found.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ..files import file_digest

__all__ = ["content_digest", "content_key", "find_copies", "image_files", "is_packed", "same_content", "whole_key"]

BLOCK = 16_384
SMALLEST = 4096
"""Smaller files (in bytes) are not compared: they hold no scan, and two empty volumes are no leak."""


def find_copies(lists: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[tuple[str, str]]:
    """Find images of one list with the same content as an image of another list.

    Only files of equal unpacked size are read. They are read completely only if their `.gz` checksums, or else their
    beginnings, middles and ends, are equal. So a list of different scans costs almost nothing.

    Returns:
        for each copy, the file and the problem. Missing files and DICOM series are skipped.
    """
    named = [(section, file) for section, items in lists.items() for file in image_files(items)]
    problems = []
    for (where, other), *rest in _of_one_content(named):
        problems += [
            (file, f"in {section} is a copy of {other} in {where}: keep it in one list")
            for section, file in rest
            if section != where and os.path.realpath(file) != os.path.realpath(other)
        ]
    return problems


def same_content(files: Sequence[str]) -> list[list[str]]:
    """Groups of files with the same content, in the order of the files; reads as little as `find_copies`."""
    return [[file for _, file in same] for same in _of_one_content([(file, file) for file in files])]


def _of_one_content(named: Sequence[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    # Mostly waiting for the file system and for zlib, which both release the GIL.
    with ThreadPoolExecutor(max_workers=8) as pool:
        for files in _groups(named, _unpacked_size, pool):
            quick = _checksum if any(is_packed(file) for _, file in files) else _sample
            for alike in _groups(files, quick, pool):
                yield from _groups(alike, content_digest, pool)


def image_files(items: Sequence[Mapping[str, Any]]) -> list[str]:
    """The files (or DICOM folders) of the items' images, each once."""
    images = (x["image"] for x in items if "image" in x)
    return list(dict.fromkeys(str(file) for x in images for file in ([x] if isinstance(x, str) else x)))


def content_key(file: str, sizes: Collection[str] | None = None) -> str | None:
    """Size and checksum of a file's content in hexadecimal digits, such as ``1f40-9ae0dd31``.

    `None` if there is no scan, or if the size is not in `sizes`. For a `.gz` file, both come from the last bytes; other
    files of a requested size are read completely.
    """
    size = _unpacked_size(file)
    if size is None or (sizes is not None and f"{size:x}" not in sizes):
        return None
    return f"{size:x}-{_checksum(file)}"


def whole_key(file: str) -> str:
    """Size and checksum like `content_key`, of any file, and also right for most `.gz` files of several parts.

    The last bytes of such a file are those of its last part. So it is read completely, as are files without `.gz`, if
    they state fewer bytes than the file itself has. Block compression always ends that way, with an empty part. If the
    last part unpacks to more than the packed file, nothing shows the earlier parts, and they do not count.
    """
    packed = os.path.getsize(file)
    if is_packed(file) and packed >= 18:  # the least that a header and the last bytes take
        size = int.from_bytes(_end(file)[4:], "little")
        if size >= packed:
            return f"{size:x}-{_checksum(file)}"
    size = value = 0
    try:
        for block in _content(file):
            size, value = size + len(block), zlib.crc32(block, value)
    except zlib.error:  # a damaged file, which the check of the headers or loading names
        return file_digest(file)
    return f"{size % 2**32:x}-{value:08x}"


def content_digest(file: str, most: int | None = None) -> str:
    """First 32 digits of the SHA-256 of a file's content, or of its first `most` bytes.

    If the content cannot be read, it is a digest of the path.
    """
    digest = hashlib.sha256()
    try:
        for block in _content(file):
            digest.update(block if most is None else block[:most])
            if most is not None:
                most -= len(block)
                if most <= 0:
                    break
    except (OSError, zlib.error):  # a damaged file, which the check of the headers or loading names
        digest = hashlib.sha256(os.path.realpath(file).encode())
    return digest.hexdigest()[:32]


def is_packed(file: str) -> bool:
    """Whether a file is packed by gzip, by its name."""
    return str(file).lower().endswith(".gz")


def _unpacked_size(file: str) -> int | None:
    """Size of the content modulo 2^32; `None` for folders and for files that are missing or too small for a scan."""
    try:
        if not os.path.isfile(file) or os.path.getsize(file) < SMALLEST:
            return None
        return int.from_bytes(_end(file)[4:], "little") if is_packed(file) else os.path.getsize(file) % 2**32
    except OSError:
        return None


def _end(file: str) -> bytes:
    """The last 8 bytes; in a `.gz` file they are checksum and size of the content."""
    with open(file, "rb") as stream:
        stream.seek(-8, os.SEEK_END)
        return stream.read()


def _checksum(file: str) -> str:
    """CRC-32 of the content, as at the end of `.gz` files."""
    if is_packed(file):
        return f"{int.from_bytes(_end(file)[:4], 'little'):08x}"
    value = 0
    for block in _content(file):
        value = zlib.crc32(block, value)
    return f"{value:08x}"


def _content(file: str) -> Iterator[bytes]:
    """Blocks of the content; reading, unpacking and hashing them let other threads run."""
    with open(file, "rb") as stream:
        if not is_packed(file):
            while block := stream.read(1 << 20):
                yield block
            return
        unpack = zlib.decompressobj(wbits=31)
        while block := stream.read(1 << 18):
            while block:
                yield unpack.decompress(block)
                block = unpack.unused_data
                if block:  # a file of several parts
                    unpack = zlib.decompressobj(wbits=31)


def _groups(
    files: Sequence[tuple[str, str]], key: Callable[[str], Any], pool: ThreadPoolExecutor
) -> list[list[tuple[str, str]]]:
    """Files of more than one list with equal keys other than `None`."""
    groups = defaultdict(list)
    if len({section for section, _ in files}) > 1:
        for named, found in zip(files, pool.map(key, [file for _, file in files]), strict=True):
            groups[found].append(named)
    groups.pop(None, None)
    return [group for group in groups.values() if len({section for section, _ in group}) > 1]


def _sample(file: str) -> bytes:
    with open(file, "rb") as stream:
        parts = [stream.read(BLOCK)]
        size = os.fstat(stream.fileno()).st_size
        for start in (size // 2, size - BLOCK):
            stream.seek(max(start, 0))
            parts.append(stream.read(BLOCK))
    return b"".join(parts)
