from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import nibabel as nib
import numpy as np

from ...dicom import DicomError, find_series, holds_dicom, read_series
from ...files import atomic_write
from ..datalist import DatalistError
from .files import item

CROPS = "nodules"


class _Nodule(NamedTuple):
    """A nodule as one radiologist saw it."""

    rater: int
    malignancy: int
    centre: np.ndarray  # mm, right-anterior-superior
    reach: float  # mm from the centre to the farthest point of the outline


def collect_lidc(
    source: Path, crops: str | None = None, raters: int = 3, rule: str = "median", side: float = 72.0
) -> list[dict[str, Any]]:
    """LIDC-IDRI (Armato et al., Medical Physics 2011): nodules in chest CT, rated 1 to 5 for malignancy by up to four
    readers.

    It reads folders with a DICOM series and an XML file of readings, anywhere below the folder, in the layout of the
    Cancer Imaging Archive (`LIDC-IDRI-0001/.../000001.dcm` and `069.xml`). Outlines of several radiologists belong to
    one nodule if each centre lies within the other outline's extent. Each nodule becomes a NIfTI file in Hounsfield
    units, a cube around it, with its rating under `malignancy`. The patient is the subject.

    Args:
        source: folder of the set.
        crops: folder for the cubes, by default `nodules` in the set's folder; existing cubes are kept. Their names have
            the number of the nodule in its XML file, whatever `raters` leaves out, and the side.
        raters: nodules outlined by fewer radiologists are left out.
        rule: how to combine the ratings: `median` (2.5 for 2 and 3), `mean` or `highest`.
        side: side of the cube in mm, larger than the bundle's crop to leave room for rotations and shifts.

    Raises:
        DatalistError: the rule is unknown, or an XML file or its series cannot be read.
    """
    rules: dict[str, Any] = {"median": statistics.median, "mean": statistics.fmean, "highest": max}
    if rule not in rules:
        raise DatalistError(f"lidc has the rules {', '.join(rules)} for its ratings, not {rule!r}.")
    folder = Path(crops) if crops else source / CROPS
    items = []
    for path in sorted(source.glob("**/*.xml")):
        if not holds_dicom(path.parent):
            continue
        subject = next((part for part in path.relative_to(source).parts if part.startswith("LIDC-IDRI-")), "")
        subject = subject or path.parent.name
        try:
            affine = find_series(path.parent).affine
            groups = _groups(_readings(path, affine))
        except (DicomError, ElementTree.ParseError) as error:
            raise DatalistError(f"{path}: {error}".rstrip(".") + "; download it again, or move its folder.") from error
        scan = None
        for number, group in enumerate(groups, start=1):
            count = len({x.rater for x in group})
            if count < raters:
                continue
            # The number among all nodules of the file, and the side: a cube that is kept is that of no other options.
            target = folder / f"{subject}_{path.stem}_nodule{number}_{side:g}mm.nii.gz"
            if not target.is_file():
                scan = _volume(path.parent, affine) if scan is None else scan
                _write_cube(target, scan, affine, np.mean([x.centre for x in group], axis=0), side)
            rating = float(rules[rule]([x.malignancy for x in group]))
            items.append(item(target, subject=subject, malignancy=rating, raters=count))
    return items


def _readings(path: Path, affine: np.ndarray) -> list[_Nodule]:
    """Nodules of 3 mm or more of all reading sessions; smaller ones have no rating."""
    found = []
    root = ElementTree.parse(path).getroot()
    for rater, session in enumerate(_named(root, "readingSession")):
        for nodule in _named(session, "unblindedReadNodule"):
            malignancy = next((element.text for element in _named(nodule, "malignancy")), None)
            points = [_place(edge, float(_text(roi, "imageZposition")), affine) for roi, edge in _edges(nodule)]
            # Readings of 0 stand for none.
            if malignancy is None or not 1 <= int(malignancy) <= 5 or len(points) < 2:
                continue
            centre = np.mean(points, axis=0)
            reach = float(np.linalg.norm(np.asarray(points) - centre, axis=1).max())
            found.append(_Nodule(rater, int(malignancy), centre, reach))
    return found


def _named(element: Any, name: str) -> list[Any]:
    return [part for part in element.iter() if part.tag.rpartition("}")[2] == name]


def _text(element: Any, name: str) -> str:
    return next(part.text for part in _named(element, name))


def _edges(nodule: Any) -> list[tuple[Any, tuple[float, float]]]:
    """Points of the outlines of the nodule, without outlines of holes."""
    return [
        (roi, (float(_text(edge, "xCoord")), float(_text(edge, "yCoord"))))
        for roi in _named(nodule, "roi")
        if _text(roi, "inclusion").strip().upper() != "FALSE"
        for edge in _named(roi, "edgeMap")
    ]


def _place(pixel: tuple[float, float], z: float, affine: np.ndarray) -> np.ndarray:
    """Position in mm of a pixel in the slice at ``z``."""
    start, step = affine[:3] @ [*pixel, 0, 1], affine[:3, 2]
    return start + step * ((z - start[2]) / step[2])


def _groups(nodules: list[_Nodule]) -> list[list[_Nodule]]:
    """Group outlines of one nodule: each joins the nearest one if their extents include each other's centres."""
    groups: list[list[_Nodule]] = []
    for nodule in nodules:
        near = [
            (math.dist(nodule.centre, other.centre), number)
            for number, group in enumerate(groups)
            for other in group
            if math.dist(nodule.centre, other.centre) <= min(nodule.reach, other.reach)
        ]
        if near:
            groups[min(near)[1]].append(nodule)
        else:
            groups.append([nodule])
    return groups


def _volume(folder: Path, affine: np.ndarray) -> np.ndarray:
    """Voxels in the order of ``find_series``."""
    import itk

    return itk.array_from_image(read_series(folder)).transpose(2, 1, 0)  # a copy: a view would outlive the image


def _write_cube(path: Path, scan: np.ndarray, affine: np.ndarray, centre: np.ndarray, side: float) -> None:
    """Write the part of a scan within half a side of a place on each axis, as far as the scan reaches."""
    middle = np.linalg.solve(affine, [*centre, 1])[:3]
    half = side / 2 / np.linalg.norm(affine[:3, :3], axis=0)
    low = np.clip(np.round(middle - half), 0, scan.shape).astype(int)
    high = np.clip(np.round(middle + half) + 1, 0, scan.shape).astype(int)
    moved = affine.copy()
    moved[:3, 3] = (affine @ [*low, 1])[:3]
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, ".nii.gz") as temporary:
        cube = scan[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
        nib.save(nib.Nifti1Image(np.round(cube).astype(np.int16), moved), temporary)
