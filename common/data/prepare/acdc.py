from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from .files import add_once, is_below, is_mask_folder, item, scans, stem

_NAME = re.compile(r"patient\d{3}_frame\d{2}")


def collect_acdc(source: Path) -> list[dict[str, Any]]:
    """ACDC (Bernard et al., IEEE TMI 2018): cine MRI of the heart, two frames of each patient with masks.

    Reads `patient001/patient001_frame01.nii.gz` with `patient001_frame01_gt.nii.gz`, anywhere below the folder, or with
    a mask of the same name in a folder `labels` (`masks`, `gt`, ...); the whole cine (`patient001_4d.nii.gz`) is left
    out. The subject is the patient, so both frames stay in one list. Masks have 1 right ventricle, 2 myocardium, 3 left
    ventricle. Patients in a folder `testing` are the published test part.

    Raises:
        DatalistError: two images or two masks have one name.
    """
    images: dict[str, Path] = {}
    masks: dict[str, Path] = {}
    for file in scans(source, "**/patient*"):
        name = stem(file).removesuffix("_gt")
        if _NAME.fullmatch(name):
            is_mask = name != stem(file) or is_mask_folder(file.parent)
            add_once(masks if is_mask else images, name, file, "masks" if is_mask else "images")
    return [
        item(
            file,
            label=masks.get(name),
            subject=name.split("_")[0],
            published_test=is_below(file, source, "testing") or None,
        )
        for name, file in sorted(images.items())
    ]
