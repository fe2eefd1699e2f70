"""The volumes that `cache: disk` keeps: ``python -m common.cache show | prune --keep 50GB``."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from .command_line import UsageError, run_command
from .files import STALE_ELSEWHERE_SECONDS, nearest_existing, size_text, volumes_folder

__all__ = ["CacheError", "Kept", "kept_volumes", "parse_size", "prune", "show"]

VOLUME = re.compile(r"[0-9a-f]{40}\.safetensors")
UNFINISHED = re.compile(rf"\.{VOLUME.pattern}\.tmp-.+")
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
AGES = ((86_400, "a day"), (7 * 86_400, "a week"), (30 * 86_400, "30 days"))


class CacheError(ValueError):
    """There is no cache, or it cannot be pruned; the message is one sentence."""


class Kept(NamedTuple):
    """A file of the cache: its size in bytes and when a run last used it, in seconds since 1970."""

    path: Path
    size: int
    used: float


def kept_volumes(folder: Path) -> list[Kept]:
    """The cached volumes in a folder, those whose last use is longest ago first."""
    return sorted(_files(folder, VOLUME), key=lambda one: (one.used, one.path))


def _files(folder: Path, name: re.Pattern) -> Iterator[Kept]:
    for path in folder.glob("[0-9a-f][0-9a-f]/*"):
        if name.fullmatch(path.name):
            with suppress(FileNotFoundError):  # another process may prune
                status = path.stat()
                yield Kept(path, status.st_size, status.st_mtime)


def parse_size(text: str) -> int:
    """Bytes of a size such as `50GB`, `1.5TB` or `800 MB`; units are powers of 1000.

    Raises:
        UsageError: it is no size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip().upper())
    if match is None:
        raise UsageError(f"--keep {text}: give a size, such as 50GB, 800MB or 0.")
    return int(float(match[1]) * UNITS[match[2]])


def show(cache_dir: str | None = None) -> None:
    """Show how many volumes the cache holds, their size, and when they were last used.

    Args:
        cache_dir: folder of the cache; by default that of runs without `cache_dir`.
    """
    folder = _folder(cache_dir)
    kept = kept_volumes(folder)
    room = shutil.disk_usage(nearest_existing(folder)).free
    print(f"{folder}: {_count(kept)}, {size_text(room)} free on its disk")
    now, rest = time.time(), kept
    for seconds, name in AGES:
        recent = [one for one in rest if now - one.used < seconds]
        rest = [one for one in rest if now - one.used >= seconds]
        if recent:
            print(f"    last used within {name}: {_count(recent)}")
    if rest:
        print(f"    before: {_count(rest)}")


def prune(keep: str, cache_dir: str | None = None) -> None:
    """Remove volumes from the cache until what is left takes at most a size, those first that no run used for longest.

    A run that needs a removed volume makes it again, also while it trains.

    Args:
        keep: size that may stay, such as 50GB; 0 removes all.
        cache_dir: folder of the cache; by default that of runs without `cache_dir`.
    """
    most, folder = parse_size(keep), _folder(cache_dir)
    unfinished = [one for one in _files(folder, UNFINISHED) if time.time() - one.used > STALE_ELSEWHERE_SECONDS]
    kept = kept_volumes(folder)
    left = sum(one.size for one in kept)
    gone = []
    for one in kept:
        if left <= most:
            break
        gone.append(one)
        left -= one.size
    for one in [*gone, *unfinished]:  # folders stay, since a run may be about to write into one
        try:
            one.path.unlink(missing_ok=True)
        except OSError as error:
            raise CacheError(
                f"{one.path} cannot be removed ({error.strerror}): prune as the user who made it."
            ) from error
    stay = kept[len(gone) :]
    print(f"{folder}: removed {_count([*gone, *unfinished])}; {_count(stay)} stay")


def _folder(cache_dir: str | None) -> Path:
    if cache_dir is None:
        return volumes_folder()
    folder = Path(cache_dir)
    if not folder.is_dir():
        raise CacheError(f"{cache_dir} is no folder: give the cache_dir of your runs.")
    return folder


def _count(files: list[Kept]) -> str:
    return f"{len(files)} volume{'s' * (len(files) != 1)}, {size_text(sum(one.size for one in files))}"


if __name__ == "__main__":
    run_command({"show": show, "prune": prune}, "python -m common.cache")
