from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from .files import item, scans, stem

_NAME = re.compile(r"(patient\d{3})_frame\d{2}")


def collect_acdc(source: Path) -> list[dict[str, Any]]:
    """ACDC (Bernard et al., IEEE TMI 2018): cine MRI of the heart, two frames of each patient with masks.

    Reads `patient001/patient001_frame01.nii.gz` with `patient001_frame01_gt.nii.gz`, wherever they lie below the
    folder; the whole cine (`patient001_4d.nii.gz`) is left out. The subject is the patient, so that both frames stay in
    one list. Masks have 1 right ventricle, 2 myocardium, 3 left ventricle.
    """
    files = {stem(file): file for file in scans(source, "**/patient*")}
    frames = {name: match[1] for name in sorted(files) if (match := _NAME.fullmatch(name))}
    return [item(files[name], label=files.get(f"{name}_gt"), subject=patient) for name, patient in frames.items()]
