"""Command line: `python -m common.score` scores a folder of predicted label maps from any source.

Each pair of files is compared on its own grid, in mm, with the rule for empty masks of `common/metrics/empty_masks.py`.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

from .command_line import run_command
from .files import atomic_write, without_ending
from .nifti import NiftiError, is_nifti, nifti_affine, read_nifti
from .volumes import diagonal, first_line, format_shape, label_problem, whole_labels

__all__ = ["ScoreError", "match", "score", "score_masks"]

SCORES = ("dice", "nsd", "hd95")


class ScoreError(ValueError):
    """Two folders cannot be compared; the message is one sentence."""


def score_masks(
    truth: np.ndarray,
    prediction: np.ndarray,
    spacing: Sequence[float],
    tolerance: float = 1.0,
    hd95: Literal["larger", "pooled"] = "larger",
    empty: Literal["leave_out", "perfect"] = "leave_out",
) -> dict[str, float]:
    """Dice, NSD and HD95 of one structure.

    Args:
        truth: mask of any number of axes.
        prediction: mask of the same shape.
        spacing: mm per voxel and axis.
        tolerance: tolerance of NSD in mm. NSD is the share of voxels of both surfaces that lie within it of the other
            surface.
        hd95: definition, as for ``HD95``.
        empty: scores of a structure in neither mask: NaN for `leave_out`; 1, 1 and 0 for `perfect`.

    Returns:
        `dice`, `nsd` and `hd95` (mm). If only one mask has the structure: 0, 0 and the diagonal of the image.
    """
    truth, prediction = np.asarray(truth, bool), np.asarray(prediction, bool)
    sizes = int(truth.sum()), int(prediction.sum())
    if not any(sizes):
        perfect = {"dice": 1.0, "nsd": 1.0, "hd95": 0.0}
        return perfect if empty == "perfect" else dict.fromkeys(SCORES, math.nan)
    if not all(sizes):
        return {"dice": 0.0, "nsd": 0.0, "hd95": diagonal(truth.shape, spacing)}
    points = [_surface(mask, spacing) for mask in (truth, prediction)]
    there, back = KDTree(points[1]).query(points[0])[0], KDTree(points[0]).query(points[1])[0]
    both = np.concatenate((there, back))
    parts = (both,) if hd95 == "pooled" else (there, back)
    return {
        "dice": 2 * int((truth & prediction).sum()) / sum(sizes),
        # 3 x 0.4 mm is 1.2 mm, also where floats add up to a little more
        "nsd": float((both <= tolerance * (1 + 1e-6)).mean()),
        "hd95": max(float(np.percentile(part, 95)) for part in parts),
    }


def _surface(mask: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Positions in mm of mask voxels at the surface: a face neighbour is outside of the mask or the image."""
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    part = mask[box]
    return (np.argwhere(part & ~ndimage.binary_erosion(part)) + [s.start for s in box]) * np.asarray(spacing)


def match(
    truth: str | os.PathLike, prediction: str | os.PathLike, postfix: str = "seg"
) -> dict[str, tuple[Path, Path]]:
    """Match files of two folders and their sub-folders: (truth, prediction) by name of the case.

    Files match by name without ending. A prediction also matches without `_` and the postfix, which inference adds. If
    a name occurs twice in a folder, as with `sub-01/T1w.nii.gz`, all files match by their path in it.

    Raises:
        ScoreError: a folder is missing or has no NIfTI file, or files have no partner or two partners.
    """
    files = [_files(folder) for folder in (truth, prediction)]
    true, predicted = [Path(truth), Path(prediction)]
    by_path = any(len({without_ending(x.name) for x in found}) < len(found) for found in files)

    def name(path: Path, folder: Path) -> str:
        return without_ending(path.relative_to(folder).as_posix() if by_path else path.name)

    pairs: dict[str, list[Path]] = {}
    for path in files[0]:
        pairs.setdefault(name(path, true), []).append(path)
    twice = [str(path) for found in pairs.values() if len(found) > 1 for path in found]
    if twice:
        raise ScoreError(f"These files of the truth have one name: {_list(twice)}; leave one of each in {true}.")
    partners: dict[str, list[Path]] = {case: [] for case in pairs}
    alone = []
    for path in files[1]:
        case = name(path, predicted)
        if case not in partners:
            case = case.removesuffix(f"_{postfix}")
        if case in partners:
            partners[case].append(path)
        else:
            alone.append(str(path))
    twice = [str(path) for found in partners.values() if len(found) > 1 for path in found]
    if twice:
        raise ScoreError(f"These predictions belong to one case: {_list(twice)}; leave one of each in {predicted}.")
    missing = [str(pairs[case][0]) for case, found in partners.items() if not found]
    problems = []
    if missing:
        problems.append(f"without a prediction in {predicted}: {_list(missing)}")
    if alone:
        problems.append(f"without a truth in {true}: {_list(alone)}")
    if problems:
        raise ScoreError(
            f"Files have no partner, {'; '.join(problems)}; give both the same name (a prediction may end in "
            f"_{postfix}) or move them elsewhere."
        )
    return {case: (pairs[case][0], partners[case][0]) for case in sorted(pairs)}


def _files(folder: str | os.PathLike) -> list[Path]:
    folder = Path(folder)
    if not folder.is_dir():
        raise ScoreError(f"{folder} is not a folder: give the folder of the NIfTI files.")
    found = sorted(x for x in folder.rglob("*") if is_nifti(x) and not x.name.startswith("."))
    if not found:
        raise ScoreError(f"{folder} has no NIfTI file (.nii.gz, .nii): give the folder with the files.")
    return found


def _list(files: Sequence[str]) -> str:
    return ", ".join(files[:10]) + (f", and {len(files) - 10} more" if len(files) > 10 else "")


def score(
    truth: str,
    prediction: str,
    output: str = "scores.csv",
    names: Any = None,
    tolerance: float = 1.0,
    hd95: Literal["larger", "pooled"] = "larger",
    postfix: str = "seg",
    empty: Literal["leave_out", "perfect"] = "leave_out",
) -> None:
    """Score predicted label maps against true ones: Dice, NSD and HD95 of each case and class, on the scan's own grid.

    Files match by name; sub-folders are read, too. All headers are compared before anything is scored. A class in only
    one mask gets Dice 0, NSD 0 and, as HD95, the diagonal of the image.

    Args:
        truth: folder of the true label maps (NIfTI), with the numbers of the predictions.
        prediction: folder of the predicted label maps; their names may end in the postfix.
        output: CSV file to write, one row per case and class; replaced if it exists.
        names: names of the classes 1, 2, ..., separated by commas; by default every value above 0 in the truth or a
            prediction is a class with that name.
        tolerance: tolerance of NSD in mm.
        hd95: larger (of the two directed 95th percentiles, as MONAI) or pooled (as medpy, nnFormer and TransUNet).
        postfix: what follows `_` at the end of a prediction's name.
        empty: score of a class in neither mask: leave_out (of the means) or perfect (Dice 1, NSD 1, HD95 0).
    """
    if empty not in ("leave_out", "perfect"):
        raise ScoreError(f"--empty must be leave_out or perfect, not {empty}.")
    if hd95 not in ("larger", "pooled"):
        raise ScoreError(f"--hd95 must be larger or pooled, not {hd95}.")
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 <= tolerance < math.inf:
        raise ScoreError(f"--tolerance must be 0 mm or more, not {tolerance}.")
    classes = _classes(names)
    cases = match(str(truth), str(prediction), str(postfix))
    _compare_headers(cases)
    rows = []
    maps_hold = {case: _values(pair) for case, pair in cases.items()}
    if classes is None:
        classes = {label: str(label) for label in sorted(set().union(*maps_hold.values()) - {0})}
        if not classes:
            raise ScoreError(f"The label maps of {truth} and {prediction} hold only background (0): nothing to score.")
    else:
        unnamed = {c: sorted(found - {0, *classes}) for c, found in maps_hold.items() if found - {0, *classes}}
        if unnamed:
            values = sorted({value for found in unnamed.values() for value in found})
            raise ScoreError(
                f"--names has {len(classes)} classes, and the values {', '.join(map(str, values[:10]))} are in "
                f"{_list([str(path) for c in unnamed for path in cases[c]])}: name every class, or number both alike."
            )
    for case, pair in cases.items():
        spacing = [float(size) for size in nib.affines.voxel_sizes(nifti_affine(pair[0]))]
        true, predicted = (_read(path) for path in pair)
        for label, name in classes.items():
            found = score_masks(true == label, predicted == label, spacing, tolerance, hd95, empty)
            rows.append({"case": case, "class": name, **found})
    with atomic_write(output) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["case", "class", *SCORES], lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: "" if value != value else value for key, value in row.items()} for row in rows)
    print(_table(rows, list(classes.values()), len(cases), tolerance, hd95))
    print(f"written to {Path(output).absolute()}")


def _classes(names: Any) -> dict[int, str] | None:
    if names is None:
        return None
    given = names.split(",") if isinstance(names, str) else list(names) if isinstance(names, list | tuple) else [names]
    stripped = [str(name).strip() for name in given]
    if isinstance(names, bool) or not all(stripped) or len(set(stripped)) < len(stripped):
        raise ScoreError(
            f"--names {names} is not a list of different names separated by commas: give the names of the "
            "classes 1, 2, ..."
        )
    return dict(enumerate(stripped, 1))


def _compare_headers(cases: Mapping[str, tuple[Path, Path]]) -> None:
    """Refuse pairs with different grids; one sentence lists all."""
    shapes, affines = [], []
    read: dict[Path, Any] = {}
    grids: dict[Path, np.ndarray] = {}
    for pair in cases.values():
        for path in pair:
            try:
                read[path] = nib.load(path)
                grids[path] = nifti_affine(path, read[path])
            except NiftiError as error:
                raise ScoreError(f"{path} {error}.") from error
            except Exception as error:  # nibabel, zlib and the OS each raise their own kinds
                raise ScoreError(f"{path} cannot be read as NIfTI ({first_line(error)}): write it again.") from error
        true, predicted = (read[path] for path in pair)
        if len(true.shape) != 3:
            raise ScoreError(
                f"{pair[0]} has {len(true.shape)} axes ({format_shape(true.shape)}): give label maps of three."
            )
        if true.shape != predicted.shape:
            shapes.append(f"{pair[1]} ({format_shape(predicted.shape)}) and {pair[0]} ({format_shape(true.shape)})")
        # headers hold an affine as float32 or as a quaternion, which differ by a little
        elif not np.allclose(grids[pair[0]], grids[pair[1]], rtol=1e-3, atol=1e-2):
            affines.append(f"{pair[1]} and {pair[0]}")
    problems = []
    if shapes:
        problems.append(f"different shapes: {_list(shapes)}")
    if affines:
        problems.append(f"different affines: {_list(affines)}")
    if problems:
        raise ScoreError(
            f"Predictions do not lie on the grid of the truth, {'; '.join(problems)}; resample them to it first, with "
            "nearest neighbours."
        )


def _read(path: Path) -> np.ndarray:
    """A label map as whole numbers."""
    try:
        stored = np.asanyarray(read_nifti(path).dataobj)
    except NiftiError as error:
        raise ScoreError(f"{path} {error}: write it again.") from error
    except MemoryError:
        raise
    except Exception as error:  # as above
        raise ScoreError(f"{path} cannot be read to its end ({first_line(error)}): write it again.") from error
    values = whole_labels(stored, str(path))
    problem = label_problem(values)
    if problem:
        raise ScoreError(f"{path} {problem}: give label maps of whole numbers, 0 or more.")
    return values if np.issubdtype(values.dtype, np.integer) else values.astype(np.int64)


def _values(pair: Sequence[Path]) -> set[int]:
    return {int(value) for path in pair for value in np.unique(_read(path))}


def _table(rows: Sequence[Mapping], classes: Sequence[str], cases: int, tolerance: float, hd95: str) -> str:
    """Mean of each class over the counting cases, and the mean over cases of the mean over classes."""
    means = []
    for name in classes:
        scores = [[row[key] for row in rows if row["class"] == name and row["dice"] == row["dice"]] for key in SCORES]
        means.append([float(np.mean(x)) if x else math.nan for x in scores] + [len(scores[0])])
    lines: list[tuple[str, ...]] = [
        ("class", "Dice", f"NSD at {tolerance:g} mm", f"HD95 in mm ({hd95})", f"of {cases} cases")
    ]
    lines += [
        (name, *(f"{value:.{digits}f}" for value, digits in zip(mean[:3], (4, 4, 2), strict=True)), f"{mean[3]:.0f}")
        for name, mean in zip(classes, means, strict=True)
    ]
    by_case: dict[str, list[list[float]]] = {}
    for row in rows:
        if row["dice"] == row["dice"]:
            by_case.setdefault(row["case"], []).append([row[key] for key in SCORES])
    if len(classes) > 1 and by_case:
        overall = np.mean([np.mean(scores, axis=0) for scores in by_case.values()], axis=0)
        lines.append(("mean", f"{overall[0]:.4f}", f"{overall[1]:.4f}", f"{overall[2]:.2f}", f"{len(by_case)}"))
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(x.rjust(w) for x, w in zip(line[1:], widths[1:], strict=True))]).rstrip()
        for line in lines
    )


def main() -> None:
    run_command(score, "python -m common.score")


if __name__ == "__main__":
    main()
