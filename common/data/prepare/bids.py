from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ..datalist import DatalistError
from .files import item, number, scans, stem, text_or_none
from .visits import Visits

# What BIDS derivatives add to the name of the image that they come from.
_DERIVED = {
    "space",
    "cohort",
    "atlas",
    "roi",
    "seg",
    "scale",
    "res",
    "den",
    "label",
    "desc",
    "hemi",
    "from",
    "to",
    "mode",
}
_DIAGNOSIS_COLUMNS = ("diagnosis", "group", "dx")


def collect_bids(
    source: Path, suffix: str = "T1w", label_pattern: str = "*_dseg", diagnoses: str | None = None
) -> list[dict[str, Any]]:
    """A BIDS folder: `sub-*/[ses-*/]anat/*_T1w.nii.gz` and `participants.tsv`.

    It looks for labels in `derivatives/**` and beside the image. The name of a label must have all entities of the
    image (`sub`, `ses`, `acq`, `run`, ...) with the same values, no others except those of derivatives (`space`,
    `desc`, `res`, `label`, ...), and must match a pattern. Ages and diagnoses (columns `age`; `diagnosis`, `group` or
    `dx`) are those of the visit in `sub-*/sub-*_sessions.tsv`. Columns that this table lacks come from
    `participants.tsv`: from the row of the visit if a column names visits (`Visits`), otherwise from that of the
    participant.

    Args:
        source: root of the data set.
        suffix: BIDS suffix of the images.
        label_pattern: pattern of the labels' names without file suffix, such as `*_desc-aseg_dseg`.
        diagnoses: values of the diagnosis column in the order of their classes, separated by commas
            (`control,patient`). `None` keeps a column of whole numbers and numbers other values in alphabetical order.
            Only values that some image has count.

    Raises:
        DatalistError: an image has several matching labels, a diagnosis is not among the named ones, or a participant
            has several rows without a session that differ in age or diagnosis.
    """
    visits = Visits(source, ("age", *_DIAGNOSIS_COLUMNS))
    derived: dict[str, list[Path]] = {}
    for file in scans(source, "derivatives/**/sub-*"):
        if fnmatch(stem(file), label_pattern):
            derived.setdefault(stem(file).split("_")[0], []).append(file)
    images = sorted(scans(source, f"sub-*/anat/*_{suffix}") + scans(source, f"sub-*/ses-*/anat/*_{suffix}"))
    found = [text_or_none(visits.cell(image, *_DIAGNOSIS_COLUMNS)) for image in images]
    classes = _diagnosis_classes(found, diagnoses)
    items = []
    for image, diagnosis in zip(images, found, strict=True):
        subject = image.relative_to(source).parts[0]
        beside = [file for file in scans(image.parent, "sub-*") if fnmatch(stem(file), label_pattern)]
        items.append(
            item(
                image,
                label=_label(image, suffix, [*derived.get(subject, []), *beside]),
                subject=subject,
                age=number(visits.cell(image, "age")),
                diagnosis=classes.get(diagnosis),
            )
        )
    return items


def _label(image: Path, suffix: str, candidates: Sequence[Path]) -> Path | None:
    found = [file for file in candidates if file != image and belongs(image, suffix, file)]
    if len(found) > 1:
        raise DatalistError(f"{image} has several labels, {found[0]} and {found[1]}: narrow `--label_pattern`.")
    return found[0] if found else None


def belongs(image: Path, suffix: str, label: Path) -> bool:
    """Whether a label belongs to an image, by the entities in their names."""
    own, entities = _entities(image), _entities(label)
    others = entities.keys() - own.keys() - _DERIVED - {"mod"}
    return not others and entities.get("mod", suffix) == suffix and own.items() <= entities.items()


def _entities(file: Path) -> dict[str, str]:
    """The entities of a name, `sub-01_ses-2_T1w` -> {"sub": "01", "ses": "2"}."""
    return {key: value for key, dash, value in (part.partition("-") for part in stem(file).split("_")) if dash}


def _diagnosis_classes(of_images: Iterable[str | None], diagnoses: Any) -> dict[str | None, int]:
    found = sorted({d for d in of_images if d is not None})
    if diagnoses is not None:
        names = diagnoses.split(",") if isinstance(diagnoses, str) else [str(d) for d in diagnoses]
        unknown = [d for d in found if d not in names]
        if unknown:
            raise DatalistError(f"The images have the diagnoses {', '.join(found)}: name them all, not {names}.")
        return {name: index for index, name in enumerate(names)}
    if all(d.isdecimal() for d in found):
        return {d: int(d) for d in found}
    return {d: index for index, d in enumerate(found)}
