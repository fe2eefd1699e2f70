from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from .files import by_stem, first_folder, item, number, read_table, scans, stem

_NAME = re.compile(r"IXI\d{3}-[A-Za-z]+-\d+(-T1)?")


def collect_ixi(source: Path) -> list[dict[str, Any]]:
    """IXI (brain-development.org/ixi-dataset): T1 scans of healthy adults, with ages.

    Reads the public layout, `IXI-T1/IXI012-HH-1211-T1.nii.gz` with `IXI.xls` exported as `IXI.csv` beside it, and
    `t1/IXI012-HH-1211.nii.gz` with `participants.tsv`. Masks are taken from a folder `labels` with the same names.
    """
    folder = first_folder(source, ("IXI-T1", "t1")) or source
    labels = by_stem(scans(source / "labels"), "labels")
    ages: dict[str, float | None] = {}
    for row in read_table(source, ("participants.tsv", "participants.csv", "IXI.csv", "IXI.tsv", "IXI*.csv")):
        name = row.get("participant_id") or f"IXI{int(number(row.get('ixi_id')) or 0):03d}"
        if ages.get(name) is None:  # the public table has a second, empty row for some
            ages[name] = number(row.get("age"))
    items = []
    for image in scans(folder, "IXI*"):
        name = stem(image)
        if not _NAME.fullmatch(name):
            continue
        session = name.removesuffix("-T1")
        subject = re.split("[-_]", name)[0]
        label = labels.get(name) or labels.get(session)
        age = ages.get(session, ages.get(subject))
        items.append(item(image, label=label, subject=subject, age=age))
    return items
