from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..datalist import DatalistError
from .files import item, number, read_table

_SUBJECT = re.compile(r"(OAS1_\d{4})_MR\d+")


def collect_oasis1(source: Path, image: str = "norm", label: str = "seg35") -> list[dict[str, Any]]:
    """OASIS-1 (Marcus et al., J. Cognitive Neuroscience 2007) in the version of the neurite package.

    Reads `OASIS_OAS1_0001_MR1/norm.nii.gz` and so on (Hoopes et al., IPMI 2021), with the ages and diagnoses of
    `oasis_cross-sectional.csv` if that table lies beside the folders. The diagnosis is 1 for a clinical dementia rating
    above 0, 0 for a rating of 0, and left out for subjects (mostly young) without a rating.

    Args:
        source: folder of the subjects' folders.
        image: file of each subject, without suffix: `norm` (without the skull), `orig` (with it), `aligned_norm`,
            `aligned_orig`; several, separated by commas, give one item each. The task `skull` needs `orig`, since
            `norm` is already stripped.
        label: `seg35`, which fits every task (label scheme `oasis_seg35`), or `seg4` for the four tissues only
            (`oasis_seg4`); both in the space of the image.

    Raises:
        DatalistError: `label` is unknown.
    """
    if label not in ("seg4", "seg35"):
        raise DatalistError(f"`label` is {label!r}; OASIS-1 has the masks seg4 and seg35.")
    images = image.split(",") if isinstance(image, str) else image
    rows = {row.get("id", ""): row for row in read_table(source, ("oasis_cross-sectional*.csv", "oasis*.csv"))}
    items = []
    for folder in sorted(p for p in source.iterdir() if p.is_dir() and _SUBJECT.search(p.name)):
        match = _SUBJECT.search(folder.name)
        assert match is not None
        row = rows.get(match[0], {})
        rating = number(row.get("cdr"))
        for name in images:
            file = folder / f"{name}.nii.gz"
            mask = folder / f"{'aligned_' if name.startswith('aligned_') else ''}{label}.nii.gz"
            if file.is_file():
                items.append(
                    item(
                        file,
                        label=mask if mask.is_file() else None,
                        subject=match[1],
                        age=number(row.get("age")),
                        diagnosis=None if rating is None else int(rating > 0),
                    )
                )
    return items
