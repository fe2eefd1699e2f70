from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ..datalist import DatalistError
from .files import item, number, read_table, scans, stem, text_or_none

_DIAGNOSIS_COLUMNS = ("diagnosis", "group", "dx")


def collect_bids(
    source: Path, suffix: str = "T1w", label_pattern: str = "*_dseg", diagnoses: str | None = None
) -> list[dict[str, Any]]:
    """A BIDS folder: `sub-*/[ses-*/]anat/*_T1w.nii.gz` and `participants.tsv`.

    Labels are looked for in `derivatives/**` and beside the image: files of the same subject and session whose name
    begins as the image's does before its suffix and matches a pattern. Ages and diagnoses are those of
    `participants.tsv` (columns `age`; `diagnosis`, `group` or `dx`).

    Args:
        source: root of the data set.
        suffix: BIDS suffix of the images.
        label_pattern: pattern of the labels' names without file suffix, such as `*_desc-aseg_dseg`.
        diagnoses: values of the diagnosis column in the order of their classes, separated by commas
            (`control,patient`). `None` takes a column of whole numbers as it is and others in alphabetical order.

    Raises:
        DatalistError: an image has several labels that match, or a diagnosis is not among those named.
    """
    rows = {row.get("participant_id", ""): row for row in read_table(source, ("participants.tsv",))}
    classes = _diagnosis_classes(rows, diagnoses)
    items = []
    for image in sorted(scans(source, f"sub-*/anat/*_{suffix}") + scans(source, f"sub-*/ses-*/anat/*_{suffix}")):
        subject = image.relative_to(source).parts[0]
        row = rows.get(subject, {})
        items.append(
            item(
                image,
                label=_label(source, image, subject, suffix, label_pattern),
                subject=subject,
                age=number(row.get("age")),
                diagnosis=classes.get(_diagnosis(row)),
            )
        )
    return items


def _label(source: Path, image: Path, subject: str, suffix: str, pattern: str) -> Path | None:
    prefix = stem(image).removesuffix(suffix)
    candidates = scans(source, f"derivatives/**/{subject}/**/{prefix}*") + scans(image.parent, f"{prefix}*")
    found = [p for p in candidates if p != image and fnmatch(stem(p), pattern)]
    if len(found) > 1:
        raise DatalistError(f"{image} has several labels, {found[0]} and {found[1]}: narrow `--label_pattern`.")
    return found[0] if found else None


def _diagnosis(row: dict[str, str]) -> str | None:
    return next((text_or_none(row[c]) for c in _DIAGNOSIS_COLUMNS if c in row), None)


def _diagnosis_classes(rows: dict[str, dict[str, str]], diagnoses: Any) -> dict[str | None, int]:
    found = sorted({d for d in map(_diagnosis, rows.values()) if d is not None})
    if diagnoses is not None:
        names = diagnoses.split(",") if isinstance(diagnoses, str) else [str(d) for d in diagnoses]
        unknown = [d for d in found if d not in names]
        if unknown:
            raise DatalistError(f"participants.tsv has the diagnoses {', '.join(found)}: name them all, not {names}.")
        return {name: index for index, name in enumerate(names)}
    if all(d.isdecimal() for d in found):
        return {d: int(d) for d in found}
    return {d: index for index, d in enumerate(found)}
