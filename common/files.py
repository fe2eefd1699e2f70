"""Write files atomically, digest them, and find the folder for cached data."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import secrets
import stat
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

__all__ = [
    "atomic_write",
    "cache_folder",
    "common_folder",
    "file_digest",
    "held_folder",
    "made_folder",
    "names_below",
    "nearest_existing",
    "size_text",
    "volumes_folder",
    "without_ending",
]

NIFTI_ENDINGS = (".nii.gz", ".nii")
VOLUME_ENDINGS = (*NIFTI_ENDINGS, ".nrrd", ".mha", ".mhd")
"""Endings of the formats that inference accepts, in lower case, longer ones first."""


STALE_SECONDS = 600
"""Age in seconds at which a temporary file of an ended process is removed; a file in writing changes more often."""
STALE_ELSEWHERE_SECONDS = 86_400
"""The same if it is unknown whether the process ended, such as on another machine with a shared disk."""


@contextmanager
def atomic_write(path: str | os.PathLike, suffix: str = "") -> Iterator[Path]:
    """Yield a temporary file beside `path`; it becomes `path` if the block ends without an error.

    So `path` is either the old file or the complete new one, even on disk after a machine failure. Parent folders are
    made; the umask sets the mode. Temporary files of `path` from killed processes are removed. `suffix` ends the
    temporary file's name, for writers that choose the format by it (nibabel: `.nii.gz`).

    Raises:
        OSError: `path` cannot be written, such as on a full disk; of the same kind and number, and naming `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(path, suffix)
    temporary = None
    try:
        chosen = path.parent / f".{path.name}.tmp-{_host()}-{os.getpid()}-{secrets.token_hex(4)}{suffix}"
        chosen.touch(exist_ok=False)
        temporary = chosen
        # The mode that a new file gets. To read the umask itself, one must set it, for all threads at once.
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        os.chmod(temporary, mode)  # safetensors gives 0600
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        ours = temporary is None or error.filename in (None, str(temporary))
        if ours and (type(error) is OSError or error.errno is not None):
            sentence = f"{path} could not be written ({error.strerror or error})"
            raise (OSError(error.errno, sentence) if error.errno is not None else OSError(sentence)) from error
        raise
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def made_folder(folder: str | os.PathLike) -> Iterator[None]:
    """Make a folder; what this made, parents included, goes again if it is empty at the end."""
    folder = Path(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with suppress(OSError):  # another process may have written there
            for path in made:
                path.rmdir()


@contextmanager
def held_folder(folder: str | os.PathLike, timeout: float = -1) -> Iterator[None]:
    """Make a folder and keep other processes that ask for it out, with the file `.lock` in it.

    What is refused leaves no folder: one that this made goes again if nothing was written into it.

    Args:
        timeout: seconds to wait for another process; without end if negative.

    Raises:
        filelock.Timeout: another process holds the folder.
        OSError: the folder cannot be made or written.
    """
    folder = Path(folder)
    new = not folder.exists()
    with made_folder(folder), FileLock(folder / ".lock", timeout):
        try:
            yield
        finally:
            with suppress(OSError):  # Windows keeps a file that is open
                if new and os.listdir(folder) == [".lock"]:
                    (folder / ".lock").unlink()


def file_digest(*files: str | os.PathLike) -> str:
    """SHA-256 of the content of files, one after the other, in hexadecimal digits; no file is in memory as a whole."""
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as stream:
            hashlib.file_digest(stream, lambda: digest)
    return digest.hexdigest()


def without_ending(name: str | os.PathLike) -> str:
    """A file's name, or its path, without the ending of a format of volumes."""
    name = os.fspath(name)
    return next((name[: -len(end)] for end in VOLUME_ENDINGS if name.lower().endswith(end)), name)


def common_folder(files: Sequence[str]) -> str:
    """The deepest folder that holds all files, at any depth."""
    return os.path.commonpath([os.path.dirname(file) for file in files])


def names_below(files: Sequence[str]) -> list[str]:
    """Unique names for files: paths below their common folder, without endings if possible."""
    common = common_folder(files) if files else ""
    paths = [Path(os.path.relpath(file, common)).as_posix() for file in files]
    names = [without_ending(path) for path in paths]
    return names if len(set(names)) == len(set(paths)) else paths


def nearest_existing(path: str | os.PathLike) -> Path:
    """`path`, or the nearest folder above it that is there; what stands in its way may be a file."""
    path = Path(path)
    return next(one for one in (path, *path.parents) if one.exists())


def _host() -> str:
    return f"{zlib.crc32(platform.node().encode()):08x}"


def _remove_stale(path: Path, suffix: str) -> None:
    """Remove temporary files of `path` that no process writes any more, as far as possible."""
    ours = re.compile(rf"{re.escape(f'.{path.name}.tmp-')}([0-9a-f]{{8}})-(\d+)-[a-z0-9_]{{8}}{re.escape(suffix)}")
    with suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            match = ours.fullmatch(entry.name)
            if match is None:
                continue
            with suppress(OSError):
                ended = match[1] == _host() and not _lives(int(match[2]))
                age = time.time() - entry.stat(follow_symlinks=False).st_mtime
                if age > (STALE_SECONDS if ended else STALE_ELSEWHERE_SECONDS):
                    os.unlink(entry.path)


def _lives(pid: int) -> bool:
    """Whether a process of this machine runs; true if unknown."""
    if os.name != "posix":  # elsewhere `os.kill` ends the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def cache_folder() -> Path:
    """Folder for the collection's cached data: its name in `$XDG_CACHE_HOME` or `~/.cache`.

    It may not exist yet.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "monai-transfer-bundles"


def volumes_folder() -> Path:
    """Folder of cached volumes where no `cache_dir` is given. It may not exist yet."""
    return cache_folder() / "volumes"


def size_text(size: float) -> str:
    """Bytes in words, in GB or MB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
