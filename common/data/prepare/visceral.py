from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ...files import atomic_write
from ..datalist import DatalistError
from .files import item, scans, some, stem

_MASK = re.compile(r"(?P<scan>(?P<subject>\d+)_\d+_[^_]+_[^_]+)_(?P<structure>\d+)(?:_(?P<annotator>\d+))?")
_SCAN = re.compile(r"(?P<subject>\d+)_\d+_[^_]+_[^_]+")
COMBINED = "labels_radlex"


def collect_visceral(source: Path, labels: str | None = None, structures: str | None = None) -> list[dict[str, Any]]:
    """VISCERAL Anatomy (Jimenez-del-Toro et al., IEEE TMI 2016): CT and MR of the trunk, one mask file per structure.

    Reads scans named `10000100_1_CTce_ThAb.nii.gz` (subject, session, modality, field of view) and masks named
    `10000100_1_CTce_ThAb_1302_7.nii.gz` (RadLex number of the structure, annotator), anywhere below the folder. The
    masks of a scan become one label image with the RadLex number of each structure (`label_scheme` `visceral`); the
    first of several annotators counts. All sessions and modalities of a subject stay in one list.

    Args:
        source: folder of the set.
        labels: folder for the label images, by default `labels_radlex` in the set's folder; existing ones are kept.
        structures: RadLex numbers of the wanted structures, separated by commas (`1302,1326`, the lungs); scans that
            lack one then have no label. Their label images lie in a folder of their own (`labels_radlex/1302_1326`), so
            that those of other structures stay. By default all structures.

    Raises:
        DatalistError: masks of a scan overlap or lie on another grid, or a RadLex number is invalid.
    """
    wanted = None if structures is None else sorted({_number(x) for x in str(structures).strip("()[]").split(",")})
    folder = Path(labels) if labels else source / COMBINED
    files = [file for file in scans(source, "**/*") if folder not in file.parents]
    folder = folder if wanted is None else folder / "_".join(map(str, wanted))
    images = {stem(file): file for file in files if _SCAN.fullmatch(stem(file))}
    masks: dict[str, dict[int, Path]] = {}
    for file in files:
        match = _MASK.fullmatch(stem(file))
        if match and match["scan"] in images:
            masks.setdefault(match["scan"], {}).setdefault(int(match["structure"]), file)
    items = []
    for name, image in sorted(images.items()):
        own = masks.get(name, {})
        chosen = own if wanted is None else {number: own[number] for number in wanted if number in own}
        complete = bool(chosen) and (wanted is None or len(chosen) == len(wanted))
        match = _SCAN.fullmatch(name)
        assert match is not None
        label = _combined(chosen, folder / f"{name}.nii.gz") if complete else None
        items.append(item(image, label=label, subject=match["subject"]))
    return items


def _number(text: str) -> int:
    if not text.strip().isdecimal():
        raise DatalistError(
            f"--structures {text!r} is not a list of RadLex numbers: give numbers separated by commas, such "
            "as 1302,1326."
        )
    return int(text)


def _combined(masks: dict[int, Path], path: Path) -> Path:
    """Combine masks that do not overlap into one label image, written once."""
    if path.is_file() and _holds(path, masks):
        return path
    labels: np.ndarray | None = None
    first: Any = None
    for number, file in sorted(masks.items()):
        image: Any = nib.load(file)
        mask = np.asarray(image.dataobj) > 0
        if labels is None:
            labels, first = np.zeros(mask.shape, np.uint16), image
        if mask.shape != labels.shape or not np.allclose(image.affine, first.affine, atol=1e-3):
            raise DatalistError(f"{file} is on another grid than the other masks of its scan; leave one of them out.")
        both = np.unique(labels[mask])
        if both.any():
            raise DatalistError(
                f"{file} overlaps the mask of structure {some([n for n in both.tolist() if n])}: name the structures "
                "that you want with --structures."
            )
        labels[mask] = number
    with atomic_write(path, ".nii.gz") as temporary:
        nib.save(nib.Nifti1Image(labels, first.affine), temporary)
    return path


def _holds(path: Path, masks: dict[int, Path]) -> bool:
    """Whether an existing label image has these structures."""
    image: Any = nib.load(path)
    return set(np.unique(np.asarray(image.dataobj)).tolist()) - {0} == set(masks)
