"""Digest what the items of a list name: the content of their scans and masks, wherever these lie."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..files import cache_folder
from ..json_files import read_json, write_json
from .cache_key import file_stamps
from .copies import is_packed, whole_key

__all__ = ["contents_digest"]

logger = logging.getLogger(__name__)

KEPT = 1 << 20
"""Bytes of a file from which its key is kept for other processes; smaller files are read again in no time."""
LONG = 2 << 30
"""Bytes of which reading takes long enough to say so."""
MOST = 50_000
"""Largest number of files whose keys are kept; those that were read first go."""

_known: dict[str, list[str]] = {}  # file or folder -> digest of its stamps, and its key


def contents_digest(items: Sequence[Mapping[str, Any]]) -> str:
    """SHA-256 of the content of all files that items name, in their order: volumes, masks and DICOM series.

    It is the same for a copy of the data in another place, also if the copy is packed (`.gz`) and the data are not. Of
    a `.gz` file only the last bytes are read. Other files are read once, until their size or time changes: their keys
    are kept in `contents.json` of the cache folder (`common.files.cache_folder`).
    """
    places = {file: os.path.realpath(file) for item in items for _, file in _named(item)}
    stamps = {place: file_stamps(place) for place in places.values()}
    marks = {place: hashlib.sha256(json.dumps(found).encode()).hexdigest() for place, found in stamps.items()}
    kept = cache_folder() / "contents.json"
    if any(place not in _known for place in stamps):
        for place, known in _kept_keys(kept).items():
            _known.setdefault(place, known)
    changed = [place for place in stamps if place not in _known or _known[place][0] != marks[place]]
    unread = sum(size for place in changed for path, size, _ in stamps[place] if not is_packed(path))
    if unread >= LONG:
        logger.warning("Reading %.1f GB of scans once, to notice later if they change.", unread / 1e9)
    # Mostly waiting for the file system and for zlib, which both release the GIL.
    with ThreadPoolExecutor(max_workers=8) as pool:
        for place, key in zip(changed, pool.map(_key, (stamps[place] for place in changed)), strict=True):
            _known[place] = [marks[place], key]
    new = {place: _known[place] for place in changed if sum(size for _, size, _ in stamps[place]) >= KEPT}
    if new:
        with suppress(OSError):  # it only saves time
            write_json(kept, dict(list((_kept_keys(kept) | new).items())[-MOST:]))
    described = [[[name, _known[places[file]][1]] for name, file in _named(item)] for item in items]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def _kept_keys(path: Path) -> dict[str, list[str]]:
    """What other processes read; nothing from a file that is damaged."""
    try:
        content = read_json(path, {})
    except (OSError, ValueError):
        return {}
    found = content if isinstance(content, dict) else {}
    return {file: known for file, known in found.items() if isinstance(known, list) and len(known) == 2}


def _named(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """The paths that an item names, with the key of each."""
    if isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from _named(value[key], str(key))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _named(one, name)
    # The paths of a datalist are absolute. Another text, such as the name of a subject, is no file, though one below
    # the working folder may be called so.
    elif isinstance(value, str | os.PathLike) and os.path.isabs(value) and os.path.exists(value):
        yield name, str(value)


def _key(stamps: Sequence[Sequence[Any]]) -> str:
    """Key of the content of a file, or of the files of a folder."""
    keys = [whole_key(path) for path, _, _ in stamps]
    return keys[0] if len(keys) == 1 else hashlib.sha256("\n".join(keys).encode()).hexdigest()
