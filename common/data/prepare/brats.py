from __future__ import annotations

from pathlib import Path
from typing import Any

from ..datalist import DatalistError
from .files import is_below, item, scans, stem

_MODALITIES = ("flair", "t1", "t1ce", "t2")
_MISNAMED_MASK = "W39_1998.09.19_Segm"  # of BraTS20_Training_355, as published


def collect_brats(source: Path) -> list[dict[str, Any]]:
    """BraTS 2017 to 2020: `**/NAME/NAME_flair.nii.gz`, `_t1`, `_t1ce`, `_t2` and `_seg`, one folder per subject.

    An image has four channels in the Decathlon's order: FLAIR, T1, T1 with contrast agent, T2. Without `_seg` a scan
    has no label. The validation and test parts of the challenge are in folders with such names. The mask of subject 355
    of BraTS 2020 has the hospital's file name; it is found, too.

    Raises:
        DatalistError: a subject lacks a modality.
    """
    items = []
    for first in scans(source, "**/*_flair"):
        subject = stem(first).removesuffix("_flair")
        found = {name: scans(first.parent, f"{subject}_{name}") for name in (*_MODALITIES, "seg")}
        missing = [name for name in _MODALITIES if not found[name]]
        if missing:
            raise DatalistError(f"{first.parent} lacks {', '.join(missing)}: complete or remove this subject.")
        image = [found[name][0] for name in _MODALITIES]
        masks = found["seg"] or scans(first.parent, _MISNAMED_MASK)
        judged = not masks and is_below(first, source, ".*(validation|test).*")
        items.append(item(image, label=masks[0] if masks else None, subject=subject, published_test=judged or None))
    return items
