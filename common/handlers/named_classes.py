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
    """Replace ``class0``, ``class1``, ... with the names of structures in the tables of MONAI's ``MetricsSaver``.

    MONAI numbers the columns of each table, so ``class0`` is the background in one table but the first structure in the
    table of a metric without background. When the evaluation ends, this handler renames the header of ``*_raw.csv`` and
    the first column of ``*_summary.csv``. A table keeps MONAI's names unless it has one column per class, with or
    without background. If the task has no classes, a single column holds one number per scan and is called ``value``.

    Args:
        folder: ``save_dir`` of the ``MetricsSaver``.
        names: class number -> name, 0 is the background; None if the task has no classes.
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
        """The cells with class names, if there is a name for each."""
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
    """Quote a cell as CSV does: only if it contains a comma."""
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow([name])
    return text.getvalue()
