"""Facts about scans, and whether a new scan is like a network's training scans.

A network predicts a mask for any input. So its file records facts about its training scans (`Fingerprint`), and
inference compares each scan with them.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import nibabel as nib
import numpy as np

from .foreground import AIR_IN_HU, foreground_mask
from .volumes import VolumeError, first_line, format_shape, image_problem

__all__ = [
    "Difference",
    "Fingerprint",
    "FingerprintInTheMaking",
    "ScanFacts",
    "facts_of_volume",
    "fingerprint_in",
    "scan_facts",
    "spread",
]

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
"""Version of a fingerprint's JSON; newer ones are refused."""

QUANTILES = (0.5, 5.0, 50.0, 95.0, 99.5)
"""Percentiles of the foreground's intensities in a scan's facts."""
MOST_VOXELS = 1 << 21
"""Largest number of voxels to read per channel; larger channels are read every second, third, ... along each axis."""

AIR = -200.0
"""Air and lung lie below it in Hounsfield units; almost nothing of an MR scan does."""
FAT = -30.0
"""Fat lies below it; even crops of a body without air hold some."""
LEAST = 0.005
"""Share of voxels below one of these that makes a scan a CT."""
MOST_HU = 5000.0
"""Upper limit of bone and metal; a scan with brighter voxels has no Hounsfield units."""

WARN, REFUSE = 1.5, 3.0
"""Factors by which voxel sizes and extents may leave the range of the training scans (see `Fingerprint`)."""
REFUSE_SPACING = 4.0
CONTRAST = 0.15
"""Largest distance of a scan's contrast from the range of the training scans."""
RARE = 0.1
"""A modality with a smaller share of the training scans gives a warning."""

MOST_SCANS = 50
"""Largest number of scans read for the fingerprint of a training set."""

AXES = ("left-right", "front-back", "up-down")
Severity = Literal["refuse", "warn"]


@dataclass(frozen=True)
class ScanFacts:
    """Facts of one scan.

    Attributes:
        file: the first of its files.
        channels: number of channels.
        shape: voxels by axis, as stored.
        spacing: voxel sizes in mm, likewise.
        orientation: axis codes, such as RAS.
        quantiles: raw intensities at 0.5, 5, 50, 95 and 99.5 % of the foreground's voxels, one channel after the other.
            The foreground is everything brighter than air (`foreground_mask`, "tissue"), or everything above -900 if
            0.5 % are below -30.
        air: share of all voxels below -200, the sign of Hounsfield units.
    """

    file: str
    channels: int
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    orientation: str
    quantiles: tuple[float, ...]
    air: float

    @property
    def modality(self) -> Literal["CT", "MR"]:
        """A guess: CT if the intensities look like Hounsfield units, else MR.

        They do if 99.5 % of the foreground is below 5000, and 0.5 % of all voxels are below -200 or 0.5 % of the
        foreground below -30. PET, ultrasound and CT in other units count as MR.
        """
        lows, highs = self.quantiles[:: len(QUANTILES)], self.quantiles[len(QUANTILES) - 1 :: len(QUANTILES)]
        in_units = max(highs) < MOST_HU and (self.air >= LEAST or min(lows) < FAT)
        return "CT" if in_units else "MR"

    @property
    def contrast(self) -> tuple[float, ...]:
        """Position of the median between 5 % (0) and 95 % (1) of the foreground, by channel; free of unit and scale."""
        count = len(QUANTILES)
        rows = [self.quantiles[start : start + count] for start in range(0, len(self.quantiles), count)]
        return tuple((row[2] - row[1]) / (row[3] - row[1]) if row[3] > row[1] else 0.5 for row in rows)

    @property
    def extent(self) -> tuple[float, ...]:
        """Size in mm by axis, as stored."""
        return tuple(n * size for n, size in zip(self.shape, self.spacing, strict=True))

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ScanFacts:
        """The facts that `to_json` wrote."""
        made: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        return cls(**made)


@dataclass(frozen=True)
class Difference:
    """One thing in which a scan differs from the scans of a fingerprint.

    Attributes:
        what: `modality`, `channels`, `spacing`, `size` or `contrast`.
        severity: `refuse` if a mask would be useless, `warn` if it may be worse.
        sentence: with both values; it begins with a small letter, to follow a file's name.
    """

    what: str
    severity: Severity
    sentence: str


def scan_facts(path: str | os.PathLike | Sequence[str | os.PathLike]) -> ScanFacts:
    """The facts of a scan.

    Args:
        path: a file or the folder of a DICOM series; or several, one for each channel.

    Raises:
        VolumeError: it cannot be read, is not a volume, is constant or not finite, or its channels differ in shape; the
            message is the end of a sentence that begins with the (first) file.
    """
    from .transforms.load_volume import read_volume  # brings ITK

    files = [os.fspath(one) for one in ([path] if isinstance(path, str | os.PathLike) else path)]
    facts: ScanFacts | None = None
    for file in files:
        try:
            one = facts_of_volume(read_volume(file), file)
        except VolumeError as error:
            if file == files[0]:
                raise
            raise VolumeError(f"has a channel {file} that {first_line(error)}") from error
        if facts is not None and facts.shape != one.shape:
            raise VolumeError(
                f"has the shape {format_shape(facts.shape)}, but its channel {file} {format_shape(one.shape)}: "
                "all must be on one grid"
            )
        facts = one if facts is None else _joined(facts, one)
    if facts is None:
        raise VolumeError("has no files")
    return facts


def facts_of_volume(volume: Any, file: str | os.PathLike) -> ScanFacts:
    """The facts of a loaded scan.

    Args:
        volume: a `MetaTensor` (C, *spatial) from `LoadVolumed`, with its affine.
        file: file that it was loaded from.

    Raises:
        VolumeError: it is not a volume of three axes, is constant or not finite.
    """
    if volume.ndim != 4:
        raise VolumeError(f"has {volume.ndim - 1} axes ({format_shape(volume.shape[1:])}), but a volume has 3")
    values = volume.as_tensor() if hasattr(volume, "as_tensor") else volume
    problem = image_problem(values.numpy())
    if problem:
        raise VolumeError(problem)
    shape = tuple(int(n) for n in values.shape[1:])
    step = max(1, int(np.ceil((np.prod(shape) / MOST_VOXELS) ** (1 / 3))))
    sample = values[:, ::step, ::step, ::step].float()
    quantiles: list[float] = []
    for channel in sample:
        in_units = float((channel < FAT).float().mean()) >= LEAST
        inside = channel[foreground_mask(channel, AIR_IN_HU if in_units else "tissue")]
        quantiles += np.percentile((inside if inside.numel() else channel).numpy(), QUANTILES).tolist()
    affine = np.asarray(volume.affine, float)
    return ScanFacts(
        file=os.fspath(file),
        channels=len(values),
        shape=shape,
        spacing=tuple(round(float(size), 4) for size in np.linalg.norm(affine[:3, :3], axis=0)),
        orientation="".join(nib.orientations.aff2axcodes(affine)),
        quantiles=tuple(float(f"{value:.6g}") for value in quantiles),
        air=round(float((sample < AIR).float().mean()), 6),
    )


def _joined(facts: ScanFacts, channel: ScanFacts) -> ScanFacts:
    count = facts.channels + channel.channels
    return ScanFacts(
        file=facts.file,
        channels=count,
        shape=facts.shape,
        spacing=facts.spacing,
        orientation=facts.orientation,
        quantiles=facts.quantiles + channel.quantiles,
        air=round((facts.air * facts.channels + channel.air * channel.channels) / count, 6),
    )


@dataclass(frozen=True)
class Fingerprint:
    """The ranges of the facts of a training set, without names of files.

    The rules for differences (`differences`):

    - `channels`: refused if no training scan had as many.
    - `modality`: refused if the scan counts as CT and no training scan did, or the other way round; a warning if fewer
      than a tenth did.
    - `spacing`: by anatomical axis, after both are oriented alike. Refused if a voxel is more than 4 times larger than
      the largest, or smaller than the smallest, of the training scans; a warning from 1.5 times on.
    - `size`: the extent in mm, likewise; refused from 3 times on, a warning from 1.5 times on.
    - `contrast`: a warning if no scan is a CT and a channel's median lies more than 0.15 outside of the range of the
      training scans, on a scale with 0 at 5 % and 1 at 95 % of the foreground (`ScanFacts.contrast`).

    The direction and order of stored axes do not matter, since the bundles orient all scans alike. MR intensities have
    no unit, so their scale does not matter either.

    Attributes:
        scans: number of scans that were read.
        among: number of scans that they were drawn from.
        channels: numbers of channels, each with its number of scans.
        modalities: likewise (`ScanFacts.modality`).
        spacing: least and largest voxel size in mm, left-right, front-back and up-down.
        extent: least and largest size in mm, likewise.
        contrast: least and largest `ScanFacts.contrast`, by channel; empty if the numbers of channels differ.
    """

    scans: int
    among: int
    channels: dict[int, int]
    modalities: dict[str, int]
    spacing: tuple[tuple[float, float], ...]
    extent: tuple[tuple[float, float], ...]
    contrast: tuple[tuple[float, float], ...]

    @classmethod
    def of(cls, facts: Iterable[ScanFacts], among: int | None = None) -> Fingerprint:
        """The fingerprint of some scans, which represent `among` scans, or only themselves if None.

        Raises:
            ValueError: there are none.
        """
        scans = list(facts)
        if not scans:
            raise ValueError("a fingerprint needs at least one scan.")
        return cls(
            scans=len(scans),
            among=len(scans) if among is None else among,
            channels=dict(sorted(Counter(one.channels for one in scans).items())),
            modalities=dict(sorted(Counter(str(one.modality) for one in scans).items())),
            spacing=_ranges([_by_anatomy(one, one.spacing) for one in scans]),
            extent=_ranges([_by_anatomy(one, one.extent) for one in scans]),
            contrast=_ranges([one.contrast for one in scans]) if len({one.channels for one in scans}) == 1 else (),
        )

    def differences(self, facts: ScanFacts) -> list[Difference]:
        """Differences of a scan by the rules above; an empty list if it is like the training scans."""
        found = []
        if facts.channels not in self.channels:
            had = " or ".join(map(str, self.channels))
            found.append(
                Difference(
                    "channels", "refuse", f"it has {_channels(facts.channels)}, but the training scans have {had}"
                )
            )
        same = self.modalities.get(facts.modality, 0)
        if same < RARE * self.scans:
            others = " and ".join(name for name in self.modalities if name != facts.modality)
            what = "it has intensities as CT has (Hounsfield units)" if facts.modality == "CT" else "it is not CT"
            some = f"{self.scans - same} of {self.scans} training scans" if same else "the training scans"
            are = f"are {others}" if others == "CT" else "are not CT"
            found.append(Difference("modality", "warn" if same else "refuse", f"{what}, {some} {are}"))
        for what, name, value, ranges, most in (
            ("spacing", "voxels", facts.spacing, self.spacing, REFUSE_SPACING),
            ("size", "a size", facts.extent, self.extent, REFUSE),
        ):
            off = [
                (max(low / size, size / high), axis, size, low, high)
                for axis, size, (low, high) in zip(AXES, _by_anatomy(facts, value), ranges, strict=True)
            ]
            factor, axis, size, low, high = max(off)
            if factor > WARN:
                trained = f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
                sentence = f"it has {name} of {size:.4g} mm ({axis}), the training scans of {trained} mm"
                found.append(Difference(what, "refuse" if factor > most else "warn", sentence))
        if facts.modality != "CT" and "CT" not in self.modalities and len(facts.contrast) == len(self.contrast):
            for median, (low, high) in zip(facts.contrast, self.contrast, strict=True):
                if not low - CONTRAST <= median <= high + CONTRAST:
                    sentence = (
                        f"it has another contrast (a median at {median:.2f} of its intensities) than the training "
                        f"scans ({low:.2f} to {high:.2f})"
                    )
                    found.append(Difference("contrast", "warn", sentence))
                    break
        return found

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "format": FORMAT_VERSION,
            "scans": self.scans,
            "among": self.among,
            "channels": {str(name): count for name, count in self.channels.items()},
            "modalities": self.modalities,
            "spacing": [list(one) for one in self.spacing],
            "extent": [list(one) for one in self.extent],
            "contrast": [list(one) for one in self.contrast],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Fingerprint:
        """The fingerprint that `to_json` wrote.

        Raises:
            ValueError: it is of a newer version, or not a fingerprint."""
        if (values.get("format") or 0) > FORMAT_VERSION:
            raise ValueError(
                f"the fingerprint of the training scans has format {values['format']}, but this version reads up "
                f"to {FORMAT_VERSION}; upgrade."
            )
        try:
            return cls(
                scans=int(values["scans"]),
                among=int(values["among"]),
                channels={int(name): int(count) for name, count in values["channels"].items()},
                modalities={str(name): int(count) for name, count in values["modalities"].items()},
                spacing=tuple((float(low), float(high)) for low, high in values["spacing"]),
                extent=tuple((float(low), float(high)) for low, high in values["extent"]),
                contrast=tuple((float(low), float(high)) for low, high in values["contrast"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"the fingerprint of the training scans is damaged ({first_line(error)}).") from error


class FingerprintInTheMaking:
    """Read some scans of a training set in a background thread, and make their fingerprint.

    Scans that cannot be read are left out; training itself reports them.

    Args:
        items: items of the training list. Up to 50 of them, evenly spaced, are read.
        key: key of the images.
    """

    def __init__(self, items: Sequence[Mapping[str, Any]], key: str = "image") -> None:
        self._all, self._key = len(items), key
        self._items = spread(items, MOST_SCANS)
        self._facts: list[ScanFacts] = []
        self._record: dict[str, Any] = {}
        self._failed = False
        # The first one in this thread: a format's reader is imported when it is first used, and a config whose objects
        # are being built goes through `sys.modules`, which must not grow meanwhile.
        self._read(self._items[:1])
        self._thread = threading.Thread(
            target=self._read, args=(self._items[1:], True), name="fingerprint", daemon=True
        )
        self._thread.start()

    def record(self) -> dict[str, Any]:
        """``{"fingerprint": JSON values}``, empty if no scan could be read; waits until it is complete."""
        self._thread.join()
        return self._record

    def _read(self, items: Sequence[Mapping[str, Any]], last: bool = False) -> None:
        if self._failed:
            return
        try:
            for item in items:
                try:
                    self._facts.append(scan_facts(item[self._key]))
                except VolumeError:
                    continue
            if last and self._facts:
                self._record = {"fingerprint": Fingerprint.of(self._facts, self._all).to_json()}
        except Exception as error:  # of files in a form of the user's own; the training is worth more than this
            logger.warning("the model gets no fingerprint of its training scans (%s).", first_line(error))
            self._failed = True


def fingerprint_in(record: Mapping[str, Any]) -> Fingerprint | None:
    """The fingerprint in the record of a model's file; None if it has none.

    Raises:
        ValueError: it is damaged, or of a newer version.
    """
    values = record.get("fingerprint")
    return Fingerprint.from_json(values) if isinstance(values, Mapping) else None


def spread(items: Sequence[Any], most: int) -> list[Any]:
    """Up to `most` items of a list, evenly spaced."""
    count = min(most, len(items))
    return [items[number * len(items) // count] for number in range(count)]


def _by_anatomy(facts: ScanFacts, values: Sequence[float]) -> tuple[float, ...]:
    """Values of the stored axes, in the order left-right, front-back, up-down."""
    order = {code: number for number, pair in enumerate(("LR", "PA", "IS")) for code in pair}
    places = [order[code] for code in facts.orientation]
    return tuple(float(values[places.index(number)]) for number in range(len(AXES)))


def _ranges(rows: Sequence[Sequence[float]]) -> tuple[tuple[float, float], ...]:
    return tuple((round(min(column), 4), round(max(column), 4)) for column in zip(*rows, strict=True))


def _channels(count: int) -> str:
    return "1 channel" if count == 1 else f"{count} channels"
