from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Mapping
from pathlib import Path

import ignite.distributed as idist
from ignite.engine import Engine, Events

from ..files import atomic_write

__all__ = ["NamedClasses"]

_CLASS = re.compile(r"class(\d+)")


class NamedClasses:
    """Put the structures' names in place of ``class0``, ``class1``, ... in the tables of MONAI's ``MetricsSaver``.

    MONAI counts the columns that there are, so that ``class0`` is the background in one table and, in that of a metric
    without the background, the first structure. Renamed are the header of ``*_raw.csv`` and the first column of
    ``*_summary.csv``, when the evaluation ends. A table with neither a column for every class nor one for every class
    but the background keeps MONAI's names. Where the task has no classes, a single column is a number per scan, and
    called ``value``.

    Args:
        folder: ``save_dir`` of the ``MetricsSaver``.
        names: class number -> name, 0 being the background; None where the task has no classes.
    """

    def __init__(self, folder: str | os.PathLike, names: Mapping[int | str, str] | None) -> None:
        self.folder = Path(folder)
        self.names = [str(name) for _, name in sorted((int(number), name) for number, name in (names or {}).items())]

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        if idist.get_rank() != 0:
            return
        for path in sorted(self.folder.glob("*_raw.csv")):
            header, _, rows = path.read_text(encoding="utf-8").partition("\n")
            self._write(path, ",".join(self._renamed(header.split(","))) + "\n" + rows)
        for path in sorted(self.folder.glob("*_summary.csv")):
            lines = [line.partition(",") for line in path.read_text(encoding="utf-8").splitlines()]
            first = self._renamed([cell for cell, _, _ in lines])
            self._write(path, "".join(f"{cell},{rest}\n" for cell, (_, _, rest) in zip(first, lines, strict=True)))

    def _renamed(self, cells: list[str]) -> list[str]:
        """The cells with names for classes, where there is a name for each."""
        columns = sum(_CLASS.fullmatch(cell) is not None for cell in cells)
        names = self.names[len(self.names) - columns :]
        if not self.names and columns == 1:
            return ["value" if _CLASS.fullmatch(cell) else cell for cell in cells]
        if columns not in (len(self.names), len(self.names) - 1):
            return cells
        matches = [(_CLASS.fullmatch(cell), cell) for cell in cells]
        return [_quoted(names[int(match[1])]) if match else cell for match, cell in matches]

    def _write(self, path: Path, text: str) -> None:
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _quoted(name: str) -> str:
    """As CSV has it: in quotation marks where it has a comma."""
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow([name])
    return text.getvalue()
