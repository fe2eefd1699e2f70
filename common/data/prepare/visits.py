"""What the tables of a BIDS folder say of each visit."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ..datalist import DatalistError
from .files import read_table

Row = Mapping[str, str]

SESSION_COLUMNS = ("session_id", "session", "ses")


class Visits:
    """Rows of `participants.tsv` and of `sub-*/sub-*_sessions.tsv`, by participant and session.

    A row of `participants.tsv` is of one session if that table has a column `session_id` (`session`, `ses`), otherwise
    of all sessions of its participant. Sessions are written `ses-1`, `1` or `01`.

    Args:
        folder: holds `participants.tsv` and the folders `sub-*`.
        columns: those that are read. Rows that agree in these count as one.
        name_of: a participant as its folder and the tables both name it, for tables that write it in another way.

    Raises:
        DatalistError: a participant has several rows that differ, for one session or without a session.
    """

    def __init__(self, folder: Path, columns: Sequence[str], name_of: Callable[[str], str] = str) -> None:
        self._folder, self._columns, self._name_of = folder, columns, name_of
        self._of_people: dict[str, dict[str | None, Row]] = {}
        self._of_sessions: dict[str, dict[str | None, Row]] = {}
        table = folder / "participants.tsv"
        for row in read_table(folder, (table.name,)):
            if row.get("participant_id"):
                self._enter(self._of_people, row["participant_id"], row, table)
        for table in sorted(folder.glob("sub-*/sub-*_sessions.tsv")):
            for row in read_table(table.parent, (table.name,)):
                self._enter(self._of_sessions, table.parent.name, row, table)

    def rows(self) -> Iterator[Row]:
        """All rows."""
        for table in (self._of_people, self._of_sessions):
            for rows in table.values():
                yield from rows.values()

    def cell(self, image: Path, *columns: str) -> str | None:
        """What the tables say of the visit of an image `sub-*/[ses-*/]anat/*`; `None` if they say nothing.

        The table of the sessions comes first, then `participants.tsv`; the first that has one of the columns decides,
        also by an empty cell.

        Args:
            columns: names of one column, the first that there is counts.

        Raises:
            DatalistError: the image is of no session, but the rows of its participant are.
        """
        subject, *parts = image.relative_to(self._folder).parts
        named = re.search(r"(?:^|_)ses-([A-Za-z0-9]+)", parts[0]) or re.search(r"_ses-([A-Za-z0-9]+)", image.name)
        session = _session(named[1]) if named else None
        for table in (self._of_sessions, self._of_people):
            row = self._row(table.get(self._name_of(subject), {}), session, image)
            found = next((row[name] for name in columns if name in row), None)
            if found is not None:
                return found
        return None

    def _row(self, rows: Mapping[str | None, Row], session: str | None, image: Path) -> Row:
        if session is None and None not in rows:
            if len(rows) > 1:
                raise DatalistError(
                    f"{image} is of no session, but the tables have {len(rows)} sessions of its participant: put it "
                    "into the folder of its session (ses-1, ...), or keep one row."
                )
            return next(iter(rows.values()), {})
        return rows.get(session) or rows.get(None) or {}

    def _enter(self, table: dict[str, dict[str | None, Row]], name: str, row: Row, file: Path) -> None:
        session = next((_session(row[column]) for column in SESSION_COLUMNS if column in row), None)
        first = table.setdefault(self._name_of(name), {}).setdefault(session, row)
        differing = [column for column in self._columns if first.get(column) != row.get(column)]
        if differing:
            which = f"the session {session} of {name}" if session else name
            raise DatalistError(
                f"{file} has several rows of {which}, which differ in {', '.join(differing)}: keep one, or name the "
                "visit of each in a column `session_id` (ses-1, ses-2, ...)."
            )


def _session(text: str) -> str | None:
    """`ses-01` -> `1`; `None` for an empty cell."""
    name = text.removeprefix("ses-")
    return (name.lstrip("0") or "0" if name.isdecimal() else name) or None
