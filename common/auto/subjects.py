"""Find the subjects of scans from the layout, a table or their names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..data.prepare.datasets import with_subjects
from ..data.prepare.files import some
from .layouts import Found

__all__ = ["find_subjects"]

MOST_SCANS = 12
"""Largest number of scans of a subject that is found only from numbers in names."""
_VISIT = re.compile(
    r"(ses|session|visit|v|scan|run|frame|fr|phase|time|timepoint|tp|t|day|d|week|w|month|m|year|y|mr|mri|ct|exam|study"
    r"|series|ser|se|acq|rep|echo|follow-?up|fu)-?\d+|\d{1,2}(m|y|mo|yr)|(19|20)\d{2}-?\d{2}-?\d{2}"
    r"|pre|post|ed|es|baseline|bl|follow-?up|fu|left|right|lh|rh",
    re.IGNORECASE,
)
_END_OF_WORD = re.compile(r"(?<=[A-Za-z0-9])(?![A-Za-z0-9])")


def find_subjects(
    cases: Sequence[Found], pattern: str | None = None, people: Sequence[str] = (), root: Path | None = None
) -> tuple[list[str], str]:
    """The subject of each case, and how it was found.

    It uses the first of these that applies: the pattern; the layout; `sub-` in the names; people of a table, if the
    name of every scan or a folder begins with one of them; endings that separate visits (`_frame01`, `_ses-2`, `_MR1`,
    dates, `_pre`, `_left`); names with a number that differ only in their last part, for at least three subjects with
    at most `MOST_SCANS` each. Otherwise each scan is a separate subject.

    Args:
        cases: the scans.
        pattern: regular expression that finds the subject in a path below `root`.
        people: names of all subjects.
        root: folder of the scans.

    Raises:
        DatalistError: the pattern is invalid, or finds nothing in the path of a scan.
    """
    if pattern is not None:
        items = with_subjects([{"image": list(map(str, x.images))} for x in cases], pattern, root or Path("/"))
        return [str(x["subject"]) for x in items], f"by the pattern {pattern!r}"
    names = [x.name for x in cases]
    if any(x.subject is not None for x in cases):
        return [x.name if x.subject is None else x.subject for x in cases], "from the layout"
    for found, how in (
        ([(m[0] if (m := re.search(r"sub-[A-Za-z0-9]+", name)) else None) for name in names], "by `sub-` in the names"),
        ([_person(name, set(people)) for name in names], "by participants.tsv"),
    ):
        if names and all(found) and len(set(found)) > 1:
            return [str(x) for x in found], how
    bare = _without_visits(names)
    bare = _without_last(bare)
    example = next((one for one, count in Counter(bare).items() if count > 1), None)
    if example is None:
        return names, "each scan counts as a separate subject"
    of_one = [name for name, subject in zip(names, bare, strict=True) if subject == example]
    return bare, f"by the names ({some(of_one, 2)} belong to one)"


def _person(name: str, people: set[str]) -> str | None:
    """The longest name of people that the scan's name, or one of its folders, begins with."""
    begins = {part[: match.start()] for part in name.split("/") for match in _END_OF_WORD.finditer(part)}
    return max(begins & people, key=len, default=None)


def _without_visits(names: Sequence[str]) -> list[str]:
    shorter = []
    for name in names:
        parts = re.split(r"([_/ -])", name)
        while len(parts) > 2 and (_VISIT.fullmatch(parts[-1]) or _date(parts)):
            parts = parts[: -6 if _date(parts) else -2]
        shorter.append("".join(parts))
    counts = Counter(shorter)
    few = len(counts) > 2 and max(counts.values()) <= MOST_SCANS
    # Names that begin alike (`control_m1`, `control_m2`) do not say whose they are, unless with a number.
    kept = {short for short, n in counts.items() if len(counts) > 1 and (n == 1 or few or re.search(r"\d", short))}
    return [short if short in kept else name for name, short in zip(names, shorter, strict=True)]


def _date(parts: Sequence[str]) -> bool:
    """Whether the last three parts are a date, such as 2006-05-02."""
    return len(parts) > 6 and re.fullmatch(r"(19|20)\d{2}[_-]\d{2}[_-]\d{2}", "".join(parts[-5:])) is not None


def _without_last(names: Sequence[str]) -> list[str]:
    shorter = {name: re.sub(r"[_/ -][^_/ -]*$", "", name) for name in names}
    counts = Counter(shorter.values())
    several = [short for short, count in counts.items() if count > 1]
    numbered = all(re.search(r"\d", short) for short in several)
    if not several or len(counts) < 3 or not numbered or max(counts.values()) > MOST_SCANS:
        return list(names)
    return [shorter[name] for name in names]
