"""DICOM series in folders: find their files, order them, and check that they form one volume.

This needs only ITK. If the slices do not form an evenly spaced volume, the error says so in one sentence; a reader
without this check puts voxels in wrong places.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .volumes import format_shape

__all__ = ["DicomError", "Series", "dicom_files", "find_series", "holds_dicom", "is_dicom", "read_series"]

SUFFIXES = (".dcm", ".dicom", ".ima")
# Positions are decimal strings, often rounded to 0.01 or 0.1 mm.
MAX_UNEVENNESS = 0.1
"""Largest distance of a slice from its evenly spaced position, as a fraction of the spacing."""
MAX_SHEAR = 0.5
"""Largest distance of a slice from the normal through the first slice, in pixels."""
MAX_TILT = 1e-3
"""Largest difference between direction cosines of slices."""
MAX_SERIES_NAMED = 5
_LIKE_A_SLICE = re.compile(r"(?=.*\d)[^.]+(\.\d+)*")  # IM0001, 1.2.840.7; not scan1.nii, README


class DicomError(ValueError):
    """DICOM files do not form one volume; the message is one sentence with the reason and what to do."""


class Series(NamedTuple):
    """A folder's slices as a volume of shape (columns, rows, slices)."""

    files: list[str]
    """Position along the slices' normal, the cross product of the directions of rows and columns."""
    shape: tuple[int, int, int]
    affine: np.ndarray
    """4 x 4, from voxels to millimetres, right-anterior-superior as in NIfTI."""


class _Slice(NamedTuple):
    file: Path
    tags: Mapping[str, str]
    size: tuple[int, int]  # columns, rows
    spacing: np.ndarray  # (2,) mm between columns, between rows
    directions: np.ndarray  # (3, 2) along a row, along a column; left-posterior-superior
    position: np.ndarray  # (3,) mm


def is_dicom(file: str | os.PathLike) -> bool:
    """Whether the content of a file is DICOM, by the mark after its preamble."""
    try:
        with open(file, "rb") as stream:
            stream.seek(128)
            return stream.read(4) == b"DICM"
    except OSError:
        return False


def dicom_files(folder: str | os.PathLike) -> list[Path]:
    """Files in the folder itself that are DICOM, or should be by their name, sorted by name.

    If there are any, files such as ``IM0001`` and ``1.2.840.7`` count with any content: beside slices, they are damaged
    slices. A table of contents (``DICOMDIR``) does not count.
    """
    found, like = [], []
    for path in sorted(Path(folder).iterdir()):
        if _counts(path):
            found.append(path)
        elif _LIKE_A_SLICE.fullmatch(path.name) and path.is_file():
            like.append(path)
    return sorted(found + like) if found else []


def holds_dicom(folder: str | os.PathLike) -> bool:
    """Whether files in the folder itself are DICOM, by name or content."""
    return any(map(_counts, Path(folder).iterdir()))


def _counts(path: Path) -> bool:
    if path.name.startswith(".") or path.name.upper() == "DICOMDIR" or not path.is_file():
        return False
    return path.suffix.lower() in SUFFIXES or is_dicom(path)


def find_series(folder: str | os.PathLike) -> Series:
    """The single DICOM series of a folder; reads only the header of each file.

    Raises:
        DicomError: there is no DICOM file or one that cannot be read, there are several series, or the slices are not
            parallel, equal in size and evenly spaced along their normal.
    """
    files = dicom_files(folder)
    if not files:
        raise DicomError(f"{folder} holds no DICOM file; give the folder of one series, or a NIfTI, NRRD or MHA file.")
    tags = [(file, _header(file)) for file in files]
    _check_one_series(folder, tags)
    slices = [_slice(file, header) for file, header in tags]
    if len(slices) == 1:
        raise DicomError(f"{folder} holds one slice only, {files[0].name}: a volume needs all slices of its series.")
    first = slices[0]
    for other in slices:
        _check_alike(folder, first, other)
    normal = np.cross(*first.directions.T)
    slices.sort(key=lambda one: float(one.position @ normal))
    step = _check_even(folder, slices, normal)
    affine = np.eye(4)
    affine[:3, :2] = first.directions * first.spacing
    affine[:3, 2] = normal * step
    affine[:3, 3] = slices[0].position
    affine[:2] *= -1  # left-posterior to right-anterior
    return Series([str(one.file) for one in slices], (*first.size, len(slices)), affine)


def read_series(folder: str | os.PathLike) -> Any:
    """The single DICOM series of a folder as an ITK image of float32, rescaled by its header.

    Raises:
        DicomError: as `find_series`, or a file's pixels cannot be read.
    """
    import itk

    files = find_series(folder).files
    try:
        # Not the type of the first slice: slices may be rescaled by factors of their own, and would be rounded.
        return itk.imread(files, itk.F, imageio=itk.GDCMImageIO.New())
    except RuntimeError as error:
        for file in files:
            try:
                itk.imread(file, itk.F, imageio=itk.GDCMImageIO.New())
            except RuntimeError as its_error:
                raise _damaged(file) from its_error
        raise DicomError(f"the slices in {folder} cannot be read as one volume; convert them to NIfTI.") from error


def _header(file: Path) -> dict[str, str]:
    """Tags of an image by their numbers, ``"0020|000e"``."""
    import itk

    reader = itk.GDCMImageIO.New()
    try:
        if not reader.CanReadFile(str(file)):
            raise _damaged(file)
        reader.SetFileName(str(file))
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _damaged(file) from error
    tags = reader.GetMetaDataDictionary()
    # Letters outside of ASCII come in whatever encoding the file has.
    return {key: str(tags[key]).strip().encode("utf-8", "replace").decode() for key in tags.GetKeys()}


def _damaged(file: str | os.PathLike) -> DicomError:
    return DicomError(
        f"{file} is damaged or not a DICOM image: replace it, or remove it from the folder if it is not "
        "a slice of the series."
    )


def _check_one_series(folder: str | os.PathLike, tags: Sequence[tuple[Path, Mapping[str, str]]]) -> None:
    series: dict[str, list[Mapping[str, str]]] = {}
    for _, header in tags:
        series.setdefault(header.get("0020|000e", ""), []).append(header)
    if len(series) == 1:
        return
    found = []
    for uid, headers in list(series.items())[:MAX_SERIES_NAMED]:
        name = headers[0].get("0008|103e") or "without a description"
        count = f"{len(headers)} image{'s' if len(headers) > 1 else ''}"
        found.append(f"{name!r} ({headers[0].get('0008|0060', '?')}, {count}, series {uid or 'without a UID'})")
    if len(series) > MAX_SERIES_NAMED:
        found.append(f"{len(series) - MAX_SERIES_NAMED} more")
    raise DicomError(
        f"{folder} holds images of {len(series)} DICOM series: {'; '.join(found)}; move each series into "
        "a separate folder."
    )


def _slice(file: Path, tags: Mapping[str, str]) -> _Slice:
    if int(tags.get("0028|0008") or 1) > 1:
        raise DicomError(
            f"{file} holds several frames, but only series with one slice per file can be read: convert it "
            "to NIfTI (dcm2niix "
            "does)."
        )
    if int(tags.get("0028|0002") or 1) > 1:
        raise DicomError(
            f"{file} is a colour image, but images must have one grey value per pixel: convert it to grey values."
        )
    return _Slice(
        file,
        tags,
        (int(tags["0028|0011"]), int(tags["0028|0010"])),
        _numbers(file, tags, "0028|0030", 2, "pixel spacing")[::-1],
        _numbers(file, tags, "0020|0037", 6, "orientation").reshape(2, 3).T,
        _numbers(file, tags, "0020|0032", 3, "position"),
    )


def _numbers(file: Path, tags: Mapping[str, str], tag: str, count: int, what: str) -> np.ndarray:
    try:
        numbers = np.array([float(number) for number in tags.get(tag, "").split("\\")])
    except ValueError:
        numbers = np.empty(0)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise DicomError(
            f"{file} has no {what} ({tag.replace('|', ',')}), so the position of its pixels is unknown; "
            "export the series "
            "from its source again."
        )
    return numbers


def _check_alike(folder: str | os.PathLike, first: _Slice, other: _Slice) -> None:
    between = f"{first.file.name} and {other.file.name} in {folder}"
    if other.size != first.size:
        raise DicomError(
            f"{between} differ in size ({format_shape(first.size)} and {format_shape(other.size)} pixels); "
            "put the slices of each volume into a separate folder."
        )
    if np.abs(other.directions - first.directions).max() > MAX_TILT:
        raise DicomError(
            f"{between} are not parallel, as with a localizer; put parallel slices into a separate folder."
        )
    if not np.allclose(other.spacing, first.spacing, rtol=MAX_TILT):
        spacings = f"{format_shape(first.spacing.tolist())} and {format_shape(other.spacing.tolist())} mm"
        raise DicomError(
            f"{between} differ in pixel spacing ({spacings}); put the slices of each volume into a separate folder."
        )


def _check_even(folder: str | os.PathLike, slices: Sequence[_Slice], normal: np.ndarray) -> float:
    """Check that sorted slices are evenly spaced along their normal; returns the spacing in mm."""
    positions = np.array([one.position for one in slices])
    heights = (positions - positions[0]) @ normal
    gaps = np.diff(heights)
    usual = float(np.median(gaps))
    same = int(gaps.argmin())
    if gaps[same] <= MAX_UNEVENNESS * max(usual, 1e-3):
        pair = f"{slices[same].file.name} and {slices[same + 1].file.name}"
        raise DicomError(
            f"{pair} in {folder} lie at one position, as in a series of several times, echoes or copies; put "
            "the slices of each volume into a separate folder."
        )
    step = float(heights[-1]) / (len(slices) - 1)
    if np.abs(heights - step * np.arange(len(slices))).max() > MAX_UNEVENNESS * step:
        odd = int(np.abs(gaps - usual).argmax())
        pair = f"{slices[odd].file.name} and {slices[odd + 1].file.name}"
        missing = round(float(gaps[odd]) / usual) - 1
        whole = missing > 0 and abs(gaps[odd] / usual - missing - 1) < MAX_UNEVENNESS
        guess = (
            f"{missing} slice{'s are' if missing > 1 else ' is'} missing there" if whole else "the spacing is uneven"
        )
        raise DicomError(
            f"{pair} in {folder} are {gaps[odd]:.4g} mm apart, but other slices are {usual:.4g} mm: {guess}; complete "
            "the series, or resample it to even spacing."
        )
    beside = np.linalg.norm(positions - positions[0] - heights[:, None] * normal, axis=1).max()
    if beside > MAX_SHEAR * min(slices[0].spacing):
        raise DicomError(
            f"the slices in {folder} are stacked at an angle (gantry tilt: one lies {beside:.4g} mm off the "
            "normal through the first); resample the series to an upright stack (dcm2niix does) and give "
            "the NIfTI file."
        )
    return step
