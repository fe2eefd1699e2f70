"""Cells of tables, the same in the report of a comparison and in its tables for a paper."""

from __future__ import annotations

from .statistics import mean_and_spread
from .tables import Tables

__all__ = ["escaped", "interval_cell", "mean_cell", "scores_table"]


def scores_table(tables: Tables, metric: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows: a row for each number of labels, a column for each arm."""
    rows = [
        [tables.labelled(labels), *(mean_cell(tables, arm, labels, metric) for arm in tables.arms)]
        for labels in tables.labels
    ]
    return ["labels", *tables.arms], rows


def mean_cell(tables: Tables, arm: str, labels: int, metric: str, structure: str = "mean") -> str:
    """Mean and standard deviation over seeds."""
    mean, spread, seeds = mean_and_spread(tables.scores(arm, labels, metric, structure))
    return f"{mean:.3f}{f' ± {spread:.3f}' if spread is not None else ''}" if seeds else "-"


def interval_cell(interval: tuple[float, float] | None) -> str:
    return f"{interval[0]:+.3f} to {interval[1]:+.3f}" if interval else "-"


def escaped(text: str) -> str:
    """Text of which Markdown makes no HTML: names come from files and from the command line."""
    return text.replace("&", "&amp;").replace("<", "&lt;")
