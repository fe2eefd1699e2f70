from __future__ import annotations

import csv
from pathlib import Path

__all__ = ["saved_scores"]


def saved_scores(path: Path) -> list[dict[str, str]]:
    """Rows of a table of MONAI's ``MetricsSaver``, which does not quote a path with a comma.

    Raises:
        ValueError: a row has fewer cells than the header.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    header = next(csv.reader(lines[:1], skipinitialspace=True), [])
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        cells = [cell.strip() for cell in line.rsplit(",", len(header) - 1)]  # all but the path are numbers
        if len(cells) != len(header):
            raise ValueError(f"{path}, line {number} has fewer cells than its header; evaluate that run again.")
        rows.append(dict(zip(header, cells, strict=True)))
    return rows
