from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..datalist import DatalistError
from .files import add_once, item, scans, stem

_NAME = re.compile(r"(CC\d{4})_(?:philips|siemens|ge)_(?:15|3)_(\d+)_[MF]", re.IGNORECASE)
_MASKS = {"machine_learning": "_ss", "staple": "_staple", "manual": "_manual"}


def collect_cc359(source: Path, masks: str = "machine_learning") -> list[dict[str, Any]]:
    """CC359, Calgary-Campinas (Souza et al., NeuroImage 2018): T1 scans with the skull, and brain masks.

    Reads `Original/CC0001_philips_15_55_M.nii.gz` and masks such as
    `Silver-standard-machine-learning/.../CC0001_philips_15_55_M_ss.nii.gz`, anywhere below the folder. The age is in
    the name.

    Args:
        source: folder of the set.
        masks: `machine_learning` (supervised classification, of all subjects, as in the paper), `staple` (consensus of
            eight automatic methods) or `manual` (12 subjects).

    Raises:
        DatalistError: `masks` is unknown, or two images or two masks have one name.
    """
    if masks not in _MASKS:
        raise DatalistError(f"`masks` is {masks!r}; CC359 has {', '.join(_MASKS)}.")
    suffix = _MASKS[masks]
    labels: dict[str, Path] = {}
    images: dict[str, Path] = {}
    for file in scans(source, "**/CC*"):
        match = _NAME.match(stem(file))
        if match and stem(file) == match[0]:
            add_once(images, match[0], file, "images")
        elif match and stem(file) == match[0] + suffix and "hippocampus" not in str(file.relative_to(source)).lower():
            add_once(labels, match[0], file, "masks")
    items = []
    for name, file in sorted(images.items()):
        _, subject, age, _ = _NAME.split(name)
        items.append(item(file, label=labels.get(name), subject=subject, age=float(age)))
    return items
