"""The findings in folders of scans and masks (see `look`): cases, subjects, channels and labels."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from ..data.datalist import DatalistError
from ..data.prepare.files import some
from ..data.prepare.split import split_by_subject
from ..data.prepare.write import write_datalist
from ..volumes import format_shape

if TYPE_CHECKING:
    from ..fingerprint import ScanFacts

__all__ = ["MIN_SUBJECTS", "Case", "LabelVolume", "Study", "StudyError", "by_anatomy", "describe_split", "of_head_size"]

MIN_SUBJECTS = 3
"""Least subjects with masks: one each to train, validate and test on."""
FEW_SUBJECTS = 10
"""Fewer subjects with masks than these get a note."""
MOST_LISTED = 8
"""Largest number of classes and files that `Study.describe` lists."""
THICK = 2.0
"""Slices count as thick from this anisotropy on."""
HEAD_MM = (100.0, 300.0)
"""Range of the extents of an MR volume that may be a head."""
VALIDATION, TEST = 0.1, 0.2
"""Shares of the subjects with masks to hold out, as in `common.data prepare`."""


class StudyError(DatalistError):
    """The folders hold nothing to train on; one sentence says why, and what to do."""


class LabelVolume(NamedTuple):
    """How much of a label the masks hold."""

    ml: float
    """Median over the masks that hold it."""
    cases: int
    """Number of masks that hold it."""


@dataclass(frozen=True)
class Case:
    """One scan, of one channel or several, with its mask if it has one."""

    name: str
    """Unique name of the case in the study."""
    subject: str
    """Cases of one subject are never in two lists."""
    images: tuple[Path, ...]
    """One per channel; a folder is one DICOM series."""
    mask: Path | None
    facts: ScanFacts
    section: str | None = None
    """`training`, `validation` or `test` if the layout sets it, else `None`."""
    volumes: Mapping[int, float] = field(default_factory=dict)
    """Label of the mask -> its volume in ml; without the background, 0."""


@dataclass(frozen=True)
class Study:
    """All findings of `look`."""

    layout: str
    cases: tuple[Case, ...]
    channels: tuple[str, ...] = ("image",)
    labels: Mapping[int, str] = field(default_factory=dict)
    """Values of the masks in the files, without 0 -> names."""
    voxels: Mapping[int, LabelVolume] = field(default_factory=dict)
    left_out: tuple[tuple[Path, str], ...] = ()
    """Unused files -> the reason, as the end of a sentence."""
    notes: tuple[str, ...] = ()
    """Notes on used files that the user must know, one sentence each."""
    grouping: str = "each scan for itself"
    """How the subjects were found."""
    label_scheme: str | None = None
    """How the masks are numbered (see `common.data.label_map`), if known."""
    possible_scheme: str | None = None
    """How they may be numbered, if their labels fit it and do not prove it; used with a task that the user states."""

    @property
    def labelled(self) -> tuple[Case, ...]:
        """Cases with a mask."""
        return tuple(case for case in self.cases if case.mask is not None)

    @property
    def unlabelled(self) -> tuple[Case, ...]:
        """Cases without a mask, for pre-training; without those of the layout's own test part."""
        return tuple(case for case in self.cases if case.mask is None and case.section != "test")

    @property
    def kept_aside(self) -> tuple[Case, ...]:
        """Cases of the layout's own test part without a mask: nothing is learnt from them."""
        return tuple(case for case in self.cases if case.mask is None and case.section == "test")

    @property
    def subjects(self) -> tuple[str, ...]:
        """Subjects with at least one mask, sorted."""
        return tuple(sorted({case.subject for case in self.labelled}))

    @property
    def groups(self) -> dict[int, list[int]]:
        """Class of a network, from 1 on -> its label in the masks, in the form for `MapLabelsd`."""
        return {number: [label] for number, label in enumerate(sorted(self.labels), 1)}

    @property
    def modality(self) -> str:
        """`CT` or `MR`, as for most scans: a guess by their intensities."""
        return Counter(case.facts.modality for case in self.cases).most_common(1)[0][0]

    @property
    def median_spacing(self) -> tuple[float, ...]:
        """Voxel size in mm, left-right, front-back and up-down, for any order of the axes in the files."""
        return _median([by_anatomy(case.facts, case.facts.spacing) for case in self._typical])

    @property
    def median_shape(self) -> tuple[int, ...]:
        """Voxels, likewise."""
        return tuple(round(n) for n in _median([by_anatomy(case.facts, case.facts.shape) for case in self._typical]))

    @property
    def anisotropy(self) -> float:
        """Largest of the median voxel sizes over the smallest."""
        return max(self.median_spacing) / min(self.median_spacing)

    @property
    def _typical(self) -> tuple[Case, ...]:
        return self.labelled or self.cases

    @property
    def refusal(self) -> str | None:
        """One sentence on why this cannot be trained on; `None` if it can."""
        if not self.labelled:
            return (
                f"None of the {_count(len(self.cases), 'scan')} has a mask: give the folder of the masks, each with "
                "the name of its scan."
            )
        if len(self.subjects) < MIN_SUBJECTS:
            return (
                f"{_count(len(self.subjects), 'subject')} with masks ({some(self.subjects)}) cannot be split into "
                f"training, validation and test: draw masks for {MIN_SUBJECTS} or more ({FEW_SUBJECTS} are a start)."
            )
        return None

    def describe(self) -> list[str]:
        """The findings in about ten lines of plain English."""
        labelled, subjects = len(self.labelled), len({case.subject for case in self.cases})
        parts = [f"{labelled} with a mask" if labelled < len(self.cases) else "all with a mask"]
        if self.unlabelled:
            parts.append(f"{len(self.unlabelled)} without (for pre-training)")
        if self.kept_aside:
            parts.append(f"{len(self.kept_aside)} of the layout's own test part without (nothing is learnt from them)")
        tested = sum(case.section == "test" for case in self.labelled)
        if tested:
            parts.append(f"{tested} of them in the layout's own test part")
        lines = [
            f"Found: {_count(len(self.cases), 'scan')} of {_count(subjects, 'subject')} in {self.layout}, "
            f"{', '.join(parts)}.",
            f"Subjects: {self.grouping}.",
        ]
        kinds = Counter(case.facts.modality for case in self.cases)
        kind = kinds.most_common(1)[0][0]
        odd = {name: [x.name for x in self.cases if x.facts.modality == name] for name in kinds if name != kind}
        others = "".join(f"; rather {name}: {some(names)}" for name, names in odd.items())
        why = "Hounsfield units" if kind == "CT" else "no Hounsfield units"
        count = Counter(case.facts.channels for case in self.cases).most_common(1)[0][0]
        lines.append(f"Modality: {kind}, a guess by the intensities ({why}){others}.")
        lines.append(f"Channels: {count} ({', '.join(self.channels)}).")
        spacing, ratio = self.median_spacing, self.anisotropy
        sizes = [case.facts.spacing for case in self._typical]
        of_all = f"{min(map(min, sizes)):.3g} to {max(map(max, sizes)):.3g} mm" if len(set(sizes)) > 1 else "all scans"
        thick = f"anisotropy {ratio:.2g}, {'thick slices' if ratio >= THICK else 'about even'}"
        orientations = [name for name, _ in Counter(case.facts.orientation for case in self.cases).most_common()]
        lines.append(
            f"Voxels: {format_shape([f'{x:.3g}' for x in spacing])} mm in the median "  # type: ignore[misc]
            f"({of_all}; {thick}), stored as {some(orientations, 3)}."
        )
        shapes = [by_anatomy(case.facts, case.facts.shape) for case in self._typical]
        extent = [f"{n * size:.3g}" for n, size in zip(self.median_shape, spacing, strict=True)]
        low, high = ([round(f(axis)) for axis in zip(*shapes, strict=True)] for f in (min, max))
        of_all = "all scans" if low == high else f"{format_shape(low)} to {format_shape(high)}"
        lines.append(
            f"Size: {format_shape(self.median_shape)} voxels in the median ({of_all}), {format_shape(extent)} mm."  # type: ignore[arg-type]
        )
        if self.labels:
            lines.append(self._classes())
        lines += [f"Note: {note}" for note in self.notes]
        if odd:
            lines.append(
                f"Note: CT and MR share no scale of intensities, and all scans are prepared as {kind}: if the guess is "
                "right, keep one kind in the folder and train another model for the other."
            )
        if MIN_SUBJECTS <= len(self.subjects) < FEW_SUBJECTS:
            lines.append(
                f"Note: {len(self.subjects)} subjects with masks are few. The model will be weak, and its score on so "
                f"few test scans says little: {FEW_SUBJECTS} are a start."
            )
        if self.refusal:
            lines.append(f"Not enough: {self.refusal}")
        if self.left_out:
            lines.append(f"Left out: {_count(len(self.left_out), 'file')}.")
            lines += [f"  {file} {reason}" for file, reason in self.left_out[:MOST_LISTED]]
            if len(self.left_out) > MOST_LISTED:
                lines.append(f"  and {len(self.left_out) - MOST_LISTED} more")
        return lines

    def _classes(self) -> str:
        """The labels with their volumes; the largest ones if there are many."""
        numbers = sorted(self.labels, key=lambda label: -self.voxels[label].ml)
        shown = sorted(numbers[:MOST_LISTED]) if len(numbers) > MOST_LISTED else sorted(numbers)
        texts = []
        for label in shown:
            ml, cases = self.voxels[label]
            held = f" in {cases} of {len(self.labelled)} masks" if cases < len(self.labelled) else ""
            name = self.labels[label]
            texts.append(f"{name if name == f'label {label}' else f'{label} {name}'} ({_ml(ml)}{held})")
        if len(numbers) == len(shown):
            return f"Classes: {len(shown)}, with their median volumes: {', '.join(texts)}."
        return (
            f"Classes: {len(numbers)}, from {min(numbers)} to {max(numbers)}; the largest, with their median volumes: "
            f"{', '.join(texts)}."
        )

    def datalist(self, validation: float = VALIDATION, test: float = TEST, seed: int = 0) -> dict[str, Any]:
        """Make the content of a datalist, split by subject, with absolute paths.

        Scans that the layout sets aside for test or validation stay there, with all scans of their subjects; other
        subjects are drawn. The same study and seed give the same lists.

        Args:
            validation: number of subjects with masks to validate on, or their share if below 1 (at least one).
            test: the same for the test.
            seed: seed of the draw.

        Raises:
            StudyError: fewer than `MIN_SUBJECTS` subjects have a mask.
            DatalistError: no subject is left for training.
        """
        if self.refusal:
            raise StudyError(self.refusal)
        stated: dict[str, set[str]] = {}
        for section in ("test", "validation"):
            taken = stated.get("test", set())
            stated[section] = {x.subject for x in self.labelled if x.section == section} - taken
        # Of test scans without masks nothing is learnt, so nothing of their subjects either.
        aside = {x.subject for x in self.kept_aside} - set(self.subjects)
        items = [
            {"image": [str(p) for p in x.images] if len(x.images) > 1 else str(x.images[0]), "subject": x.subject}
            | ({"label": str(x.mask)} if x.mask else {})
            for x in self.cases
            if (x.mask or x.section != "test") and x.subject not in aside
        ]
        drawn = [x for x in items if x["subject"] not in stated["validation"]]
        lists = split_by_subject(
            drawn, 0 if stated["validation"] else validation, sorted(stated["test"]) if stated["test"] else test, seed
        )
        lists["validation"] += [x for x in items if x["subject"] in stated["validation"] and "label" in x]
        content: dict[str, Any] = {"name": self.layout, "seed": seed}
        if self.label_scheme:
            content["label_scheme"] = self.label_scheme
        content["labels"] = {str(label): name for label, name in sorted(self.labels.items())}
        return content | lists

    def write_datalist(
        self,
        path: str | os.PathLike,
        validation: float = VALIDATION,
        test: float = TEST,
        seed: int = 0,
        force: bool = False,
    ) -> dict[str, Any]:
        """Write the datalist, with paths relative to its folder, and return it with absolute paths.

        Args:
            path: JSON file to write.
            validation: as in `datalist`.
            test: as in `datalist`.
            seed: as in `datalist`.
            force: replace an existing file.

        Raises:
            DatalistError: as `datalist`, or the file exists and `force` is off.
        """
        content = self.datalist(validation, test, seed)
        write_datalist(path, content, force)
        return content


def describe_split(lists: Mapping[str, Sequence[Any]]) -> str:
    """In one sentence, how many scans of a datalist each step has."""
    training, validation, test = (len(lists.get(name, ())) for name in ("training", "validation", "test"))
    return (
        f"Split: {_count(training, 'scan')} to train on, {validation} to choose the checkpoint by, {test} to test on."
    )


def by_anatomy(facts: ScanFacts, values: Sequence[float]) -> tuple[float, ...]:
    """Values of the stored axes, in the order left-right, front-back, up-down."""
    order = {code: number for number, pair in enumerate(("LR", "PA", "IS")) for code in pair}
    return tuple(value for _, value in sorted(zip(map(order.__getitem__, facts.orientation), values, strict=True)))


def of_head_size(facts: Sequence[ScanFacts]) -> bool:
    """Whether the scans have the size of a head, in the median along each stored axis."""
    extents = _median([[n * mm for n, mm in zip(one.shape, one.spacing, strict=True)] for one in facts])
    return all(HEAD_MM[0] <= mm <= HEAD_MM[1] for mm in extents)


def _ml(volume: float) -> str:
    return f"{volume:.3g} ml" if volume >= 0.1 else f"{1000 * volume:.3g} mm3"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _median(rows: Sequence[Sequence[float]]) -> tuple[float, ...]:
    return tuple(float(median(axis)) for axis in zip(*rows, strict=True))
