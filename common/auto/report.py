"""``report.html`` of an automatic run, made only from the tables and files in its folder."""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..compare.report import Block, page
from ..durations import format_duration
from ..files import atomic_write, without_ending
from ..handlers.score_table import case_names
from ..json_files import read_json
from ..nifti import is_nifti, read_nifti
from .commands import BEST_DICE, TRAINER_EPOCH, scan_root
from .plan import Plan, class_labels
from .study import Study, describe_split

__all__ = ["write_report"]

SHOWN = 3
"""Number of worst scans to show, beside the best one."""
FLAT = 0.005
"""Largest gain of Dice of the last validation over the best before that counts as flat."""
FEW_SCANS = 5
"""Fewer test scans than these get a note."""


def write_report(study: Study, plan: Plan, folder: Path, seconds: dict[str, float]) -> tuple[Path, dict[str, float]]:
    """Write ``report.html``.

    Returns:
        its path, and the mean Dice of each structure on the test scans.
    """
    scores = _scores(folder / "training" / "eval" / "scores.csv")
    names = list(dict.fromkeys(row["class"] for row in scores))
    dice = {name: _mean([row["dice"] for row in scores if row["class"] == name]) for name in names}
    blocks = list(_blocks(study, plan, folder, seconds, scores, names))
    path = folder / "report.html"
    with atomic_write(path) as temporary:
        temporary.write_text(page(blocks, "A model for your scans"), encoding="utf-8")
    return path, dice


def _blocks(
    study: Study,
    plan: Plan,
    folder: Path,
    seconds: dict[str, float],
    scores: list[dict[str, Any]],
    names: list[str],
) -> Iterator[Block]:
    cases = _by_case(scores)
    yield Block("heading", "A model for your scans", level=1)
    yield Block("list", items=list(_outcome(folder, scores, cases, "evaluate_control" in seconds)))
    yield Block("heading", "Scores by structure")
    yield Block(
        "text", "On the test scans, on their own grid; they were not used for training or to choose the weights."
    )
    volumes = _volumes(folder, names)
    yield Block("table", header=("structure", "Dice", "worst", "HD95 (mm)", "volume, drawn (ml)", "volume, found (ml)"),
                rows=list(_structure_rows(scores, names, volumes)))  # fmt: skip
    pictures = _pictures(folder, cases, names)
    if pictures is not None:
        yield Block("heading", "The test scans" if len(cases) <= SHOWN else f"The {SHOWN} worst and the best")
        yield pictures
    if volumes:
        yield Block("heading", "Are volumes right?")
        yield _volume_figure(volumes, names)
    curve = _curve(folder)
    if curve is not None:
        yield Block("heading", "Training")
        yield curve
    yield Block("heading", "What was understood")
    yield Block("list", items=study.describe())
    yield Block("heading", "What was used, and why")
    yield Block(
        "table", header=("choice", "value", "reason"), rows=[(d.what, d.value, d.reason) for d in plan.decisions]
    )
    yield Block("heading", "Cost")
    total = sum(seconds.values())
    rows = [(name.replace("_", " "), format_duration(value)) for name, value in seconds.items()]
    yield Block("table", header=("step", "time"), rows=[*rows, ("all", format_duration(total))])
    yield Block("heading", "Try next")
    yield Block("list", items=list(_advice(study, folder, cases)))


def _outcome(folder: Path, scores: list[dict[str, Any]], cases: dict[str, float], controlled: bool) -> Iterator[str]:
    values = list(cases.values())
    yield (
        f"**Mean Dice {_mean(values):.3f}** on {len(values)} test scans (the lowest "
        f"{min(values, default=math.nan):.3f}, the highest {max(values, default=math.nan):.3f})."
    )
    yield describe_split(read_json(folder / "datalist.json"))
    if len(values) < FEW_SCANS:
        yield f"{len(values)} test scans are few: on others the mean may differ a lot."
    control = folder / "control" / "eval" / "scores.csv"
    if controlled:  # a table may be there from an earlier plan
        other = _by_case(_scores(control))
        scratch = _mean(list(other.values()))
        differences = [cases[name] - other[name] for name in cases if name in other]
        better = sum(one > 0 for one in differences)
        yield (
            f"From scratch, with as many steps: {scratch:.3f}; the encoder was better in {better} of "
            f"{len(differences)} scans, by {_mean(differences):+.3f} on average. This is one training each; "
            "common.compare tells chance from gain."
        )


def _structure_rows(
    scores: list[dict[str, Any]], names: Sequence[str], volumes: dict[str, list[tuple[float, float]]]
) -> Iterator[tuple[str, ...]]:
    for name in names:
        rows = [row for row in scores if row["class"] == name]
        dice = [row["dice"] for row in rows]
        drawn, found = (np.asarray(volumes.get(name) or [(math.nan, math.nan)])).T
        yield (
            name,
            f"{_mean(dice):.3f}",
            f"{min((d for d in dice if d == d), default=math.nan):.3f}",
            f"{_mean([row['hd95'] for row in rows]):.1f}",
            f"{np.mean(drawn):.3g}",
            f"{np.mean(found):.3g}",
        )


def _pairs(folder: Path) -> Iterator[tuple[str, Path, Path, Path]]:
    """Name, scan, truth and prediction of each test scan, if all are NIfTI files; the names are those of the scores."""
    root, items = scan_root(folder / "datalist.json"), read_json(folder / "datalist.json").get("test", [])
    images = [folder / (item["image"][0] if isinstance(item["image"], list) else item["image"]) for item in items]
    for item, image, name in zip(items, images, case_names([str(image) for image in images]), strict=True):
        place = folder / "test_predictions" / os.path.relpath(image.parent, root)
        predicted = place / f"{without_ending(image.name)}_seg.nii.gz"
        if predicted.is_file() and is_nifti(image) and is_nifti(item["label"]):
            yield name, image, folder / item["label"], predicted


def _volumes(folder: Path, names: Sequence[str]) -> dict[str, list[tuple[float, float]]]:
    """Drawn and predicted volume in ml of each structure and test scan."""
    groups = class_labels(read_json(folder / "plan.json"))
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for _, _, truth, predicted in _pairs(folder):
        drawn, given = _volume(truth), _volume(predicted)
        for index, name in enumerate(names, 1):
            voxels = np.isin(drawn[0], groups[index]).sum(), (given[0] == index).sum()
            found[name].append((float(voxels[0] * drawn[1] / 1000), float(voxels[1] * given[1] / 1000)))
    return {name: pairs for name, pairs in found.items() if pairs}


def _volume(path: Path) -> tuple[np.ndarray, float]:
    """Voxels of a label map and the volume of one in mm³."""
    image = read_nifti(path)
    return _spatial(image), float(abs(np.linalg.det(image.affine[:3, :3])))


def _spatial(image: Any) -> np.ndarray:
    """Voxels along three axes: the first channel of several, without further axes of length 1."""
    voxels = np.asarray(image.dataobj)
    return voxels.reshape(*voxels.shape[:3], -1)[..., 0]


def _volume_figure(volumes: dict[str, list[tuple[float, float]]], names: Sequence[str]) -> Block:
    figure = _empty_figure(5, 4.5)
    axes = figure.subplots()
    ends = [math.inf, -math.inf]
    for name in names:
        drawn, found = np.asarray(volumes[name]).T if name in volumes else ([], [])
        axes.scatter(drawn, found, s=14, label=name)
        ends = [min([ends[0], *drawn, *found]), max([ends[1], *drawn, *found])]
    axes.plot(ends, ends, color="0.6", linewidth=1, zorder=0)
    axes.set(xlabel="drawn (ml)", ylabel="found (ml)")
    if len(names) <= 12:
        axes.legend(fontsize=8)
    return _figure(figure, "Volume of each structure in each test scan; both agree on the line.", "volumes")


def _pictures(folder: Path, cases: dict[str, float], names: Sequence[str]) -> Block | None:
    """Scan, truth and prediction in the slice with most truth."""
    pairs = {name: rest for name, *rest in _pairs(folder)}
    order = [name for name in sorted(cases, key=lambda name: cases[name]) if name in pairs]
    chosen = [*order[:SHOWN], *([order[-1]] if len(order) > SHOWN else [])]
    if not chosen:
        return None
    import matplotlib
    from matplotlib.patches import Rectangle

    groups = class_labels(read_json(folder / "plan.json"))
    figure = _empty_figure(8, 2.8 * len(chosen))
    axes = figure.subplots(len(chosen), 3, squeeze=False)
    for row, name in zip(axes, chosen, strict=True):
        scan, truth, predicted = (read_nifti(path) for path in pairs[name])
        image, drawn = _spatial(scan).astype(np.float32), _spatial(truth)
        mapped = np.zeros(drawn.shape, int)
        for index, labels in groups.items():
            mapped[np.isin(drawn, labels)] = index
        voxel = np.linalg.norm(scan.affine[:3, :3], axis=0)
        axis = int(np.argmax(voxel)) if voxel.max() > 1.5 * voxel.min() else 2
        place = int(np.argmax((mapped > 0).sum(tuple(other for other in range(3) if other != axis))))
        ratio = np.delete(voxel, axis)
        for cell, what, title in zip(
            row,
            (image, mapped, _spatial(predicted)),
            (f"{name}, Dice {cases[name]:.3f}", "drawn", "found"),
            strict=True,
        ):
            picture = np.take(what, place, axis).T
            limits = {"cmap": "gray"} if what is image else {"cmap": "turbo", "vmin": 0, "vmax": max(1, len(names))}
            if what is not image:
                cell.imshow(np.take(image, place, axis).T, cmap="gray", origin="lower", aspect=ratio[1] / ratio[0])
                picture = np.ma.masked_equal(picture, 0)
            cell.imshow(picture, origin="lower", aspect=ratio[1] / ratio[0], interpolation="nearest", **limits)
            cell.set_title(title, fontsize=9)
            cell.axis("off")
    if len(names) <= 12:
        colours = matplotlib.colormaps["turbo"](np.arange(1, len(names) + 1) / len(names))
        handles = [Rectangle((0, 0), 1, 1, color=colour) for colour in colours]
        figure.legend(handles, names, loc="lower center", ncols=min(4, len(names)), fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    return _figure(
        figure, "The slice with most of the structures: the scan, the drawn mask, and the predicted mask.", "cases"
    )


def _training_log(folder: Path) -> str:
    """The log from the last fresh start on: of the present plan, with its resumptions."""
    log = folder / "logs" / "training.log"
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    starts = [found.start() for found in re.finditer(r"^\$ .*$", text, re.MULTILINE) if " --resume " not in found[0]]
    return text[starts[-1] :] if starts else text


def _validation_dice(folder: Path) -> list[float]:
    return [float(value) for value in BEST_DICE.findall(_training_log(folder))]


def _curve(folder: Path) -> Block | None:
    dice, losses = _validation_dice(folder), TRAINER_EPOCH.findall(_training_log(folder))
    if not dice or not losses:
        return None
    figure = _empty_figure(6, 3)
    axes = figure.subplots()
    axes.plot([int(n) for n, _, _ in losses], [float(v) for _, v, _ in losses], color="0.5", label="loss of training")
    axes.set(xlabel="epoch", ylabel="loss")
    other = axes.twinx()
    interval = int(losses[-1][0]) / len(dice)
    other.plot([interval * (n + 1) for n in range(len(dice))], dice, "o-", color="tab:blue")
    other.set_ylabel("Dice of validation", color="tab:blue")
    return _figure(figure, "Loss of training (grey) and mean Dice on the validation scans (blue).", "training")


def _advice(study: Study, folder: Path, cases: dict[str, float]) -> Iterator[str]:
    dice = _validation_dice(folder)
    best = max(dice[:-1], default=math.nan)
    if dice and dice[-1] - best > FLAT:
        yield f"Validation still rose at the end ({best:.3f} to {dice[-1]:.3f}): more --hours should help."
    elif len(dice) > 1:
        yield "Validation was flat at the end: more masks will help, but more time alone will not help much."
    if cases:
        worst = min(cases, key=lambda name: cases[name])
        if cases[worst] < np.median(list(cases.values())) - 0.1:
            yield f"Look at {worst}, far below the others: the scan or its mask may be wrong."
    if study.unlabelled:
        yield (
            f"predictions/ has label maps of the {len(study.unlabelled)} scans without a mask: correct a "
            "few, add them to the masks, and run again with another output folder. This is faster than "
            "drawing."
        )
    yield "Serve model/ with MONAI Label (docs/monai_label.md), or use `python -m common.auto predict` on other scans."
    yield "You can edit plan.json and run again with this folder; the changed parts are trained again."


def _scores(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [
            {
                "case": row["case"],
                "class": row["class"],
                "dice": float(row["dice"] or math.nan),
                "hd95": float(row.get("hd95") or math.nan),
            }
            for row in csv.DictReader(file)
        ]


def _by_case(scores: list[dict[str, Any]]) -> dict[str, float]:
    names = dict.fromkeys(row["case"] for row in scores)
    return {name: _mean([row["dice"] for row in scores if row["case"] == name]) for name in names}


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if value == value]
    return sum(known) / len(known) if known else math.nan


def _empty_figure(width: float, height: float) -> Any:
    """Of inches. Not pyplot's: that would change how a notebook shows its own figures."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def _figure(figure: Any, caption: str, name: str) -> Block:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    return Block("figure", caption, items=[name], picture=buffer.getvalue())
