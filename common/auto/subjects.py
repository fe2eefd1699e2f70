"""Find the subjects of scans from the layout, a table or their names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..data.prepare.datasets import with_subjects
from ..data.prepare.subjects import subjects_of_names
from .layouts import Found
from .study import StudyError

__all__ = ["find_subjects"]


def find_subjects(
    cases: Sequence[Found], pattern: str | None = None, people: Sequence[str] = (), root: Path | None = None
) -> tuple[list[str], str]:
    """The subject of each case, and how it was found.

    It uses the first of these that applies: the pattern; the layout; the names, by the rule that `common.data prepare`
    uses as well (`subjects_of_names`). Otherwise each scan is a separate subject.

    Args:
        cases: the scans.
        pattern: regular expression that finds the subject in a path below `root`.
        people: names of all subjects.
        root: folder of the scans.

    Raises:
        DatalistError: the pattern is invalid, or finds nothing in the path of a scan.
        StudyError: the names can be read in two ways, as visits of a subject or as several subjects.
    """
    if pattern is not None:
        items = with_subjects([{"image": list(map(str, x.images))} for x in cases], pattern, root or Path("/"))
        return [str(x["subject"]) for x in items], f"by the pattern {pattern!r}"
    if any(x.subject is not None for x in cases):
        return [x.name if x.subject is None else x.subject for x in cases], "from the layout"
    found = subjects_of_names([x.name for x in cases], people)
    if found.doubt is not None:
        raise StudyError(
            f"{found.two_readings}: name the subject "
            "with --subject, a regular expression such as 'patient[0-9]+' (or '[^/]*$' for the file's name); if each "
            "scan is a separate subject, give --subject '.*'."
        )
    return found.of, found.how
