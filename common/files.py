"""Writing files in one step, and where made data lies."""

from __future__ import annotations

import os
import platform
import re
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["atomic_write", "cache_folder", "names_below", "nearest_existing", "without_ending"]

VOLUME_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
"""Of the formats that inference takes, the longer first."""


STALE_SECONDS = 600
"""After which a temporary file of a process that ended is removed; a file that is written changes more often."""
STALE_ELSEWHERE_SECONDS = 86_400
"""The same where it cannot be told whether the process ended, such as on another machine of a shared disk."""


@contextmanager
def atomic_write(path: str | os.PathLike, suffix: str = "") -> Iterator[Path]:
    """Give a temporary file beside `path` to write to; it becomes `path` when the block ends without an error.

    So `path` is the old file or the whole new one, on the disk too when the machine fails. Parent folders are made; the
    mode is what the umask gives. Temporary files of `path` that killed processes left are removed. `suffix` ends the
    temporary file's name, for writers that choose the format by it (nibabel: `.nii.gz`).

    Raises:
        OSError: `path` cannot be written, such as on a full disk; of the same kind and number, and naming `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(path, suffix)
    temporary = None
    try:
        handle, name = tempfile.mkstemp(suffix, f".{path.name}.tmp-{_host()}-{os.getpid()}-", path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp and safetensors both give 0600
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


def without_ending(name: str | os.PathLike) -> str:
    """A file's name, or its path, without the ending of a format of volumes."""
    name = os.fspath(name)
    return next((name[: -len(end)] for end in VOLUME_ENDINGS if name.lower().endswith(end)), name)


def names_below(files: Sequence[str]) -> list[str]:
    """Names that tell files apart: their paths below the folder that they share, without endings where they can."""
    common = os.path.commonpath([os.path.dirname(file) for file in files]) if files else ""
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
    """Remove temporary files of `path` that no process writes any more; what cannot be removed stays."""
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
    """Whether a process of this machine runs; true where that cannot be told."""
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
    """Folder for data that the collection makes, `$XDG_CACHE_HOME` or `~/.cache` and the collection's name in it.

    It may not exist yet.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "monai-transfer-bundles"
