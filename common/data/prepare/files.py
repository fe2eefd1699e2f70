"""Find scans and read their tables."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ...files import without_ending
from ...nifti import is_nifti
from ..datalist import DatalistError

MASK_FOLDER = re.compile(
    r"(labels?|masks?|gts?|ground_?truths?|segs?|segmentations?|annotations?)(Tr|Ts)?", re.IGNORECASE
)
_MISSING = {"", "n/a", "na", "nan", "none", "null"}


def stem(path: Path) -> str:
    """Name of a file without its ending."""
    return without_ending(path.name)


def scans(folder: Path, pattern: str = "*") -> list[Path]:
    """NIfTI files that match a glob pattern (without suffix) below a folder, sorted; none if it is missing.

    Names that begin with a dot are left out: the Decathlon's archives hold such files from macOS beside the scans.
    """
    if not folder.is_dir():
        return []
    files = folder.glob(pattern + ".[nN][iI][iI]*")
    return sorted(p for p in files if is_nifti(p) and not p.name.startswith("."))


def first_folder(source: Path, names: Iterable[str]) -> Path | None:
    """The first of some sub-folders that exists; case does not matter."""
    folders = {p.name.lower(): p for p in source.iterdir() if p.is_dir()}
    return next((folders[name.lower()] for name in names if name.lower() in folders), None)


def by_stem(files: Sequence[Path], what: str) -> dict[str, Path]:
    """Files by their stem.

    Raises:
        DatalistError: two files have one stem.
    """
    result: dict[str, Path] = {}
    for file in files:
        add_once(result, stem(file), file, what)
    return result


def add_once(found: dict[str, Path], name: str, file: Path, what: str) -> None:
    """Enter a file under its name.

    Raises:
        DatalistError: another file has this name.
    """
    if found.setdefault(name, file) != file:
        raise DatalistError(f"Two {what} have one name: {found[name]} and {file}; keep one of them.")


def is_mask_folder(folder: Path) -> bool:
    """Whether a folder has a typical name for masks: `labels`, `labelsTr`, `masks`, `gt`, ..."""
    return MASK_FOLDER.fullmatch(folder.name) is not None


def some(names: Sequence[Any], most: int = 5) -> str:
    """The first few names, separated by commas."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more


def read_table(source: Path, names: Iterable[str]) -> list[dict[str, str]]:
    """Rows of the first table found in a folder, comma- or tab-separated, with lower-case column names.

    There are no rows without a table. Export spreadsheets to CSV or TSV first.
    """
    for name in names:
        for path in sorted(source.glob(name)):
            text = path.read_text(encoding="utf-8-sig", errors="replace")
            delimiter = "\t" if "\t" in text.partition("\n")[0] else ","
            reader = csv.DictReader(text.splitlines(), delimiter=delimiter)
            return [{(k or "").strip().lower(): (v or "").strip() for k, v in row.items() if k} for row in reader]
    return []


def number(text: Any) -> float | None:
    """A finite number, or `None` for an empty cell or anything else."""
    try:
        value = float(str(text).strip())
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def text_or_none(text: Any) -> str | None:
    """A cell's text, or `None` if it marks an unknown value."""
    value = str(text or "").strip()
    return None if value.lower() in _MISSING else value


def is_below(file: Path, source: Path, name: str) -> bool:
    """Whether a folder between `source` and a file has a name that matches a regular expression; case does not matter.

    `source` itself does not count: a user who gives the folder of a test part wants its scans.
    """
    folders = file.relative_to(source).parts[:-1]
    return any(re.fullmatch(name, folder, re.IGNORECASE) for folder in folders)


def item(image: Any, **keys: Any) -> dict[str, Any]:
    """An item of a datalist, without keys of unknown value."""
    return {"image": image} | {k: v for k, v in keys.items() if v is not None}
