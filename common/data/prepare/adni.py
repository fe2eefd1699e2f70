from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from .files import add_once, item, number, read_table, scans, stem

SUBJECT = re.compile(r"\d{3}_S_\d{4,5}")
_IMAGE_ID = re.compile(r"_I(\d+)$")
_PREFIX = "MALPEM-"
_DIAGNOSES = {"CN": 0, "SMC": 0, "MCI": 1, "EMCI": 1, "LMCI": 1, "AD": 2}


def collect_adni(source: Path) -> list[dict[str, Any]]:
    """ADNI (adni.loni.usc.edu), NIfTI files from its archive, with the masks of MALP-EM.

    Reads `**/ADNI_005_S_2390_MR_..._I242887.nii` anywhere below the folder, masks named `MALPEM-` plus the name of
    their image (Ledig et al., Scientific Reports 2018), and the search result of the archive as CSV with the columns
    "Image Data ID", "Group" and "Age". Diagnoses: 0 normal, 1 mild cognitive impairment, 2 Alzheimer's disease. Several
    visits of a subject stay in one list.

    Raises:
        DatalistError: two masks have one name.
    """
    rows: dict[int, dict[str, str]] = {}
    for row in read_table(source, ("*.csv", "*.tsv")):
        image_id = re.fullmatch(r"[ID]?(\d+)", row.get("image data id", ""))
        if image_id:
            rows[int(image_id[1])] = row
    files = scans(source, "**/*")
    labels: dict[str, Path] = {}
    for file in files:
        if file.name.startswith(_PREFIX):
            add_once(labels, _key(file), file, "masks")
    items = []
    for image in files:
        subject = SUBJECT.search(image.name)
        if image.name.startswith(_PREFIX) or subject is None:
            continue
        image_id = _IMAGE_ID.search(_key(image))
        row = rows.get(int(image_id[1]), {}) if image_id else {}
        items.append(
            item(
                image,
                label=labels.get(_key(image)),
                subject=subject[0],
                age=number(row.get("age")),
                diagnosis=_DIAGNOSES.get(row.get("group", "").upper()),
            )
        )
    return items


def _key(path: Path) -> str:
    return stem(path).removeprefix(_PREFIX)
