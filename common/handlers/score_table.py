from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events

from ..files import atomic_write, names_below, without_ending
from ..metrics import PooledDice
from ..saved_scores import saved_scores

__all__ = ["ScoreTable"]


class ScoreTable:
    """Write the scores of an evaluation as ``python -m common.score`` does: ``scores.csv``, one row per case and class.

    It reads the tables of MONAI's ``MetricsSaver`` with the names from ``NamedClasses``, so put it after both. The
    columns are ``case`` (the scan's file without its ending, with folders if a name occurs twice), ``class`` and one
    column per score. The cell of a class that does not count is empty.

    Args:
        folder: ``save_dir`` of the ``MetricsSaver``.
        scores: column -> metric of the evaluator with a value per case and class, without background. Metrics that the
            evaluator lacks are skipped; without any there is no table.
        pooled: metric of the evaluator whose Dice of each class goes into ``pooled_dice.csv``, with the statistics of
            the truth (``PooledDice.statistics``); None writes no such table.
        names: of the pooled classes, class number -> name.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        scores: Mapping[str, str],
        pooled: PooledDice | None = None,
        names: Mapping[int | str, str] | None = None,
    ) -> None:
        self.folder, self.scores, self.pooled = Path(folder), dict(scores), pooled
        self.names = {int(number): str(name) for number, name in (names or {}).items()}

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        pooled = self.pooled.by_class() if self.pooled is not None else {}  # gathered by all processes
        truth = self.pooled.statistics() if self.pooled is not None else {}
        if idist.get_rank() != 0:
            return
        tables = {
            column: _read(self.folder / f"{metric}_raw.csv")
            for column, metric in self.scores.items()
            if metric in engine.state.metrics
        }
        if tables:
            first = next(iter(tables.values()))
            cases = dict(zip(first, case_names(list(first)), strict=True))
            rows = [
                [cases[file], name, *(_cell(table[file][name]) for table in tables.values())]
                for file, values in first.items()
                for name in values
            ]
            self._write("scores.csv", ["case", "class", *tables], sorted(rows, key=lambda row: row[0]))
        if pooled:
            named = [
                [self.names.get(number, f"class {number}"), _cell(value), *map(_cell, truth[number].values())]
                for number, value in pooled.items()
            ]
            self._write("pooled_dice.csv", ["class", "dice", *next(iter(truth.values()))], named)

    def _write(self, name: str, header: list[str], rows: list[list[Any]]) -> None:
        with atomic_write(self.folder / name) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([header, *rows])


def _read(path: Path) -> dict[str, dict[str, float]]:
    """Values by file and class, without the last column, their mean."""
    table = {}
    for row in saved_scores(path):
        file, *values = row.values()
        table[file] = dict(zip(list(row)[1:-1], map(float, values[:-1]), strict=True))
    return table


def case_names(files: list[str]) -> list[str]:
    """Names of the cases: files without endings, or paths below the common folder if a name occurs twice."""
    stems = [without_ending(os.path.basename(file)) for file in files]
    return stems if len(set(stems)) == len(stems) else names_below(files)


def _cell(value: float) -> float | str:
    return "" if value != value else value
