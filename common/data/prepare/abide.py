from __future__ import annotations

from pathlib import Path
from typing import Any

from .files import item, number, read_table, scans

_CONTROL = 2  # of DX_GROUP; 1 is autism


def collect_abide(source: Path, min_age: float = 13, controls: bool = True) -> list[dict[str, Any]]:
    """ABIDE I and II in BIDS, as the International Neuroimaging Data-sharing Initiative publishes them: one folder per
    site, each with `sub-*/[ses-*/]anat/*_T1w.nii.gz` and a `participants.tsv` with AGE_AT_SCAN and DX_GROUP.

    By default it takes the subjects of Jun et al. (Medical Transformer, section 4.1.1): healthy and 13 years or older.

    Args:
        source: folder that holds the sites, at any depth.
        min_age: in years; subjects without an age are left out unless it is 0. The tables' negative ages, such as
            -9999, stand for none.
        controls: False also takes subjects with autism.
    """
    items = []
    for table in sorted({path.parent for path in source.rglob("participants.tsv")}):
        rows = {_digits(row.get("participant_id", "")): row for row in read_table(table, ("participants.tsv",))}
        for image in sorted(scans(table, "sub-*/anat/*_T1w") + scans(table, "sub-*/ses-*/anat/*_T1w")):
            subject = image.relative_to(table).parts[0]
            row = rows.get(_digits(subject), {})
            age = number(row.get("age_at_scan"))
            age = None if age is not None and age < 0 else age
            if controls and number(row.get("dx_group")) != _CONTROL:
                continue
            if min_age and (age is None or age < min_age):
                continue
            items.append(item(image, subject=f"{table.name}/{subject}", age=age))
    return items


def _digits(name: str) -> str:
    """A participant's number without `sub-` and leading zeros, which the tables leave out."""
    return name.removeprefix("sub-").lstrip("0")
