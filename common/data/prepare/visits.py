"""What the tables of a BIDS folder say of each visit."""

from __future__ import annotations

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..datalist import DatalistError
from .files import read_table, some

logger = logging.getLogger(__name__)

Row = Mapping[str, str]

SESSION_COLUMNS = ("session_id", "session", "ses")


class Visits:
    """Rows of `participants.tsv` and of `sub-*/sub-*_sessions.tsv`, by participant and session.

    A row of `participants.tsv` is of one session if that table has a column `session_id`, otherwise of all sessions of
    its participant. A column `session` (`ses`) may also count the sessions of a participant. It names them only if some
    participant has several rows, and one of its values is a session of the folders. Sessions are written `ses-1`, `1`
    or `01`.

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
        rows = [row for row in read_table(folder, (table.name,)) if row.get("participant_id")]
        of_sessions = self._names_sessions(rows, table)
        for row in rows:
            session = _session_of_row(row) if of_sessions else None
            self._enter(self._of_people, row["participant_id"], row, session, table)
        for table in sorted(folder.glob("sub-*/sub-*_sessions.tsv")):
            for row in read_table(table.parent, (table.name,)):
                self._enter(self._of_sessions, table.parent.name, row, _session_of_row(row), table)

    def cell(self, image: Path, *columns: str) -> str | None:
        """What the tables say of the visit of an image `sub-*/[ses-*/]anat/*`; `None` if they say nothing.

        The table of the sessions comes first, then `participants.tsv`; the first that has one of the columns decides,
        also by an empty cell.

        Args:
            columns: names of one column, the first that there is counts.

        Raises:
            DatalistError: the image is of no session, but the rows of its participant are.
        """
        subject, session = self._person_and_session(image)
        for table in (self._of_sessions, self._of_people):
            row = self._row(table.get(subject, {}), session, image)
            found = next((row[name] for name in columns if name in row), None)
            if found is not None:
                return found
        return None

    def _person_and_session(self, path: Path) -> tuple[str, str | None]:
        """Of an image, or of a folder of its participant."""
        subject, *parts = path.relative_to(self._folder).parts
        named = re.search(r"(?:^|_)ses-([A-Za-z0-9]+)", parts[0]) or re.search(r"_ses-([A-Za-z0-9]+)", path.name)
        return self._name_of(subject), _session(named[1]) if named else None

    def _names_sessions(self, rows: Sequence[Row], file: Path) -> bool:
        """Whether the rows of participants are of one session each, with a warning if that is open."""
        column = next((name for name in SESSION_COLUMNS if rows and name in rows[0]), None)
        if column is None or column == SESSION_COLUMNS[0]:
            return column is not None
        scanned: dict[str, set[str]] = defaultdict(set)
        for pattern in ("sub-*/*", "sub-*/anat/*"):
            for path in self._folder.glob(pattern):
                person, session = self._person_and_session(path)
                if session is not None:
                    scanned[person].add(session)
        named = [(self._name_of(row["participant_id"]), _session_of_row(row)) for row in rows]
        several = max(Counter(person for person, _ in named).values()) > 1
        if several and {session for _, session in named} & set().union(*scanned.values()):
            return True
        open_people = [person for person, session in dict(named).items() if session and scanned[person] - {session}]
        if open_people:
            logger.warning(
                "%s: each row counts for all sessions of its participant, since its column `%s` does not tell them "
                "apart (%s). If it names the session of the row, call it `session_id`.",
                file,
                column,
                some(open_people),
            )
        return False

    def _row(self, rows: Mapping[str | None, Row], session: str | None, image: Path) -> Row:
        if session is None and None not in rows:
            if len(rows) > 1:
                raise DatalistError(
                    f"{image} is of no session, but the tables have {len(rows)} sessions of its participant: put it "
                    "into the folder of its session (ses-1, ...), or keep one row."
                )
            return next(iter(rows.values()), {})
        return rows.get(session) or rows.get(None) or {}

    def _enter(
        self, table: dict[str, dict[str | None, Row]], name: str, row: Row, session: str | None, file: Path
    ) -> None:
        first = table.setdefault(self._name_of(name), {}).setdefault(session, row)
        differing = [column for column in self._columns if first.get(column) != row.get(column)]
        if differing:
            which = f"the session {session} of {name}" if session else name
            raise DatalistError(
                f"{file} has several rows of {which}, which differ in {', '.join(differing)}: keep one, or name the "
                "visit of each in a column `session_id` (ses-1, ses-2, ...)."
            )


def _session_of_row(row: Row) -> str | None:
    return next((_session(row[column]) for column in SESSION_COLUMNS if column in row), None)


def _session(text: str) -> str | None:
    """`ses-01` -> `1`; `None` for an empty cell."""
    name = text.removeprefix("ses-")
    return (name.lstrip("0") or "0" if name.isdecimal() else name) or None
