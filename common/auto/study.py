"""What was found in folders of scans and masks (see `look`): the cases, their subjects, channels and labels."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from ..data.datalist import DatalistError
from ..data.prepare.write import write_datalist

if TYPE_CHECKING:
    from ..fingerprint import ScanFacts

__all__ = ["MIN_SUBJECTS", "Case", "LabelVolume", "Study", "StudyError"]

MIN_SUBJECTS = 3
"""Of subjects with masks: one to train on, one to validate on, one to test on."""
VALIDATION, TEST = 0.1, 0.2
"""Shares of the subjects with masks that are held out, as `common.data prepare` has them."""


class StudyError(DatalistError):
    """The folders hold nothing that can be trained on; one sentence says why, and what to do."""


class LabelVolume(NamedTuple):
    """How much of a label the masks hold."""

    ml: float
    """Median over the masks that hold it."""
    cases: int
    """Number of masks that hold it."""


@dataclass(frozen=True)
class Case:
    """One scan, of one channel or several, with its mask where it has one."""

    name: str
    """Tells the cases of a study apart."""
    subject: str
    """Cases of one subject never stand in two lists."""
    images: tuple[Path, ...]
    """One a channel; a folder is one DICOM series."""
    mask: Path | None
    facts: ScanFacts
    section: str | None = None
    """`training`, `validation` or `test` where the layout says so, else `None`."""
    volumes: Mapping[int, float] = field(default_factory=dict)
    """Label of the mask -> its volume in ml; without the background, 0."""


@dataclass(frozen=True)
class Study:
    """All that was found; made by `look`."""

    layout: str
    cases: tuple[Case, ...]
    channels: tuple[str, ...] = ("image",)
    labels: Mapping[int, str] = field(default_factory=dict)
    """Values of the masks as they are in the files, without 0 -> names."""
    voxels: Mapping[int, LabelVolume] = field(default_factory=dict)
    left_out: tuple[tuple[Path, str], ...] = ()
    """Files that are not used -> why, as the end of a sentence."""
    notes: tuple[str, ...] = ()
    """What is used but has to be known, one sentence each."""
    numbering: str | None = None
    """How the masks are numbered (see `common.data.label_map`), where it is known."""

    @property
    def labelled(self) -> tuple[Case, ...]:
        """Cases with a mask."""
        return tuple(case for case in self.cases if case.mask is not None)

    @property
    def unlabelled(self) -> tuple[Case, ...]:
        """Cases without a mask, which serve pre-training; not those of the layout's own test part."""
        return tuple(case for case in self.cases if case.mask is None and case.section != "test")

    @property
    def kept_aside(self) -> tuple[Case, ...]:
        """Cases of the layout's own test part that have no mask: nothing is learnt from them."""
        return tuple(case for case in self.cases if case.mask is None and case.section == "test")

    @property
    def subjects(self) -> tuple[str, ...]:
        """Subjects with a mask at least, sorted."""
        return tuple(sorted({case.subject for case in self.labelled}))

    @property
    def groups(self) -> dict[int, list[int]]:
        """Class of a network, from 1 on -> the label of the masks that it is, as `MapLabelsd` takes it."""
        return {number: [label] for number, label in enumerate(sorted(self.labels), 1)}

    @property
    def modality(self) -> str:
        """`CT` or `MR`, what most scans are: a guess by their intensities."""
        return Counter(case.facts.modality for case in self.cases).most_common(1)[0][0]

    @property
    def median_spacing(self) -> tuple[float, ...]:
        """Voxel size in mm along each axis."""
        return _median(case.facts.spacing for case in self._typical)

    @property
    def median_shape(self) -> tuple[int, ...]:
        """Voxels along each axis."""
        return tuple(round(n) for n in _median(case.facts.shape for case in self._typical))

    @property
    def anisotropy(self) -> float:
        """Largest of the median voxel sizes over the smallest."""
        return max(self.median_spacing) / min(self.median_spacing)

    @property
    def _typical(self) -> tuple[Case, ...]:
        return self.labelled or self.cases

    def describe(self) -> list[str]:
        """What was understood, in about ten lines of plain English."""
        raise NotImplementedError

    def datalist(self, validation: float = VALIDATION, test: float = TEST, seed: int = 0) -> dict[str, Any]:
        """Content of a datalist, split by subject, with absolute paths.

        What the layout holds aside for test or validation stays there; else subjects are drawn. The same study and
        seed give the same lists.

        Args:
            validation: number of subjects with masks to validate on, or below 1 their share (one at least).
            test: the same for the test.
            seed: seed of the draw.

        Raises:
            StudyError: fewer than `MIN_SUBJECTS` subjects have a mask.
            DatalistError: no subject is left for training.
        """
        raise NotImplementedError

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


def _median(rows: Iterable[Sequence[float]]) -> tuple[float, ...]:
    return tuple(float(median(axis)) for axis in zip(*rows, strict=True))
