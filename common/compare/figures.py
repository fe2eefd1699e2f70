"""The pictures of a comparison's report; each function returns one, or None if there is nothing to draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import nibabel as nib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..visualize import class_colours
from .statistics import compare_arms, mean_and_spread
from .tables import Tables, plural

__all__ = ["draw_all", "metric_name", "metric_title"]

# Okabe and Ito's palette, which colour-blind readers tell apart; the baseline is grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
GREY = "#666666"
MIN_DICE_SPAN = 0.1
MIN_SPAN = 0.2
"""Least span of the axis of other metrics, as a share of the value."""


def draw_all(tables: Tables) -> dict[str, tuple[Figure, str]]:
    """Name of each figure -> the figure and its caption."""
    metric = metric_title(tables.main_metric)
    drawn = {
        "differences": (
            differences(tables),
            f"All differences in {metric_name(tables.main_metric)}, with 95 % intervals and verdicts."
            + (" Grey: the margin of equivalence." if tables.about.get("margin") else ""),
        ),
        "label_efficiency": (
            label_efficiency(tables),
            f"{metric} on the test part against the number of labels. Lines: mean over seeds; "
            "points: one seed each; whiskers: 95 % interval of the mean over seeds and subjects, cut at the "
            "edge of the picture.",
        ),
        "learning_curves": (
            learning_curves(tables),
            "Validation during fine-tuning with the most labels, first seed: against steps, and against "
            "time including each arm's pre-training. Right: training loss.",
        ),
        "structures": (
            structures(tables),
            f"{metric} of each structure, mean over seeds and subjects, with the fewest and "
            "the most labels. Whiskers: standard deviation over seeds, cut at 0.",
        ),
        "predictions": (
            predictions(tables),
            "Predicted against true value of each test scan, first seed, with the fewest and the most labels. Grey: "
            "equality.",
        ),
        "examples": (
            examples(tables),
            "Predictions on test volumes by the nets with the first seed and the fewest labels, ordered by "
            "mean over the arms.",
        ),
    }
    return {name: (figure, caption) for name, (figure, caption) in drawn.items() if figure is not None}


def metric_name(metric: str) -> str:
    """Readable name of a metric."""
    known = {"val_mean_dice": "mean Dice", "val_hd95": "HD95 (mm)"}
    return known.get(metric, metric.removeprefix("val_").replace("_", " "))


def metric_title(metric: str) -> str:
    """`metric_name` at the beginning of a sentence."""
    name = metric_name(metric)
    return name[0].upper() + name[1:]


def plain(name: str) -> str:
    """Escape a name for matplotlib, which would read text between two dollar signs as a formula."""
    return name.replace("$", r"\$")


def colours(tables: Tables) -> dict[str, str]:
    """One colour per arm, the same in every picture."""
    others = iter(COLOURS * (1 + len(tables.arms) // len(COLOURS)))
    return {arm: GREY if arm == tables.about["baseline"] else next(others) for arm in tables.arms}


def widen(axis: Axes, metric: str) -> None:
    """Give the value axis a least span, so an irrelevant difference does not fill the picture.

    The axis spans at least 0.1 for Dice and a fifth of the middle value for other metrics; the data stay centred. A
    wider axis stays unchanged.
    """
    low, high = axis.get_ylim()
    middle = (low + high) / 2
    span = MIN_DICE_SPAN if "dice" in metric.lower() else MIN_SPAN * abs(middle)
    if high - low < span:
        axis.set_ylim(middle - span / 2, middle + span / 2)


def _figure(width: float, height: float, rows: int, columns: int) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(width, height), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def differences(tables: Tables) -> Figure | None:
    """Draw one row per comparison: mean, interval and verdict."""
    found = {key: tables.difference(*key) for key in tables.verdicts} if tables.subjects else {}
    rows = [(key, one) for key, one in found.items() if one is not None]
    if not rows:
        return None
    figure, axes = _figure(6.4, 1.2 + 0.32 * len(rows), 1, 1)
    axis, shades = axes[0, 0], colours(tables)
    margin = tables.about.get("margin")
    axis.axvline(0.0, color="#333333", linewidth=1)
    if margin:
        axis.axvspan(-margin, margin, color="#DDDDDD", zorder=0)
    for at, ((pair, labels), one) in enumerate(rows):
        low, high = one.interval or (one.parts.mean, one.parts.mean)
        axis.plot([low, high], [at, at], "-", color=shades[pair[0]], linewidth=2)
        axis.plot(one.parts.mean, at, "o", color=shades[pair[0]])
        text = tables.verdicts[pair, labels].text
        axis.annotate(text, (1.01, at), xycoords=("axes fraction", "data"), va="center", fontsize=9)
    names = [plain(f"{' - '.join(pair)}, {labels} {plural(labels, 'label')}") for (pair, labels), _ in rows]
    axis.set_yticks(range(len(rows)), names)
    axis.set_ylim(len(rows) - 0.5, -0.5)  # from above to below
    better = "right" if tables.metrics[tables.main_metric] == "higher" else "left"
    axis.locator_params(axis="x", nbins=6)  # labels such as -0.010 would run into one another
    axis.set_xlabel(plain(f"difference in {metric_name(tables.main_metric)} ({better} of 0 is better)"))
    return figure


def label_efficiency(tables: Tables) -> Figure | None:
    """Draw the main metric against the number of labels; ``widen`` sets the least span of its axis."""
    if not tables.labels:
        return None
    figure, axes = _figure(6, 4, 1, 1)
    axis, shades = axes[0, 0], colours(tables)
    whiskers = []
    shift = 1.02  # arms side by side, so that equal points do not hide each other
    for number, arm in enumerate(tables.arms):
        points = {n: mean_and_spread(tables.scores(arm, n, tables.main_metric)) for n in tables.labels}
        points = {n: value for n, value in points.items() if value[2]}
        x = [n * shift ** (number - (len(tables.arms) - 1) / 2) for n in points]
        axis.plot(x, [mean for mean, _, _ in points.values()], "-", color=shades[arm], label=plain(arm), linewidth=2)
        for at, n, (_, _, seeds) in zip(x, points, points.values(), strict=True):
            own = tables.scores(arm, n, tables.main_metric)
            interval = getattr(compare_arms(own, dict.fromkeys(own, 0.0), True), "interval", None)
            if interval is not None:
                whiskers.append(([at, at], interval, shades[arm]))
            axis.plot([at] * len(seeds), list(seeds.values()), "o", color=shades[arm], markersize=4, alpha=0.7)
    axis.set_xscale("log")
    axis.set_xticks(tables.labels, [str(n) for n in tables.labels])
    axis.minorticks_off()
    widen(axis, tables.main_metric)
    axis.set_ylim(axis.get_ylim())  # those of two seeds may be many times the picture
    for x, interval, shade in whiskers:
        axis.plot(x, interval, "_-", color=shade, linewidth=1, markersize=7)
    axis.set_xlabel("labelled training items")
    axis.set_ylabel(plain(metric_name(tables.main_metric)))
    axis.legend(frameon=False)
    return figure


def learning_curves(tables: Tables) -> Figure | None:
    rows = tables.rows("curves")
    train = [row for row in rows if row["stage"] == "train"]
    if not train:
        return None
    fraction = max(row["fraction"] for row in train)
    seed = min(row["seed"] for row in train)
    train = [row for row in train if row["fraction"] == fraction and row["seed"] == seed and not row.get("fold")]
    figure, axes = _figure(12, 3.6, 1, 3)
    for arm, shade in colours(tables).items():
        validation = [row for row in train if row["arm"] == arm and row["tag"] == tables.main_metric]
        loss = [row for row in train if row["arm"] == arm and row["tag"] == "train_loss"]
        value = [row["value"] for row in validation]
        axes[0, 0].plot([row["step"] for row in validation], value, "o-", color=shade, label=plain(arm), markersize=3)
        minutes = [(row["seconds"] + tables.pretraining_seconds(arm)) / 60 for row in validation]
        axes[0, 1].plot(minutes, value, "o-", color=shade, markersize=3)
        axes[0, 2].plot([row["step"] for row in loss], _smooth([row["value"] for row in loss]), color=shade)
    minutes_label = "minutes, pre-training included"
    if tables.made_elsewhere:
        minutes_label += f"\n(unknown for {plain(', '.join(tables.made_elsewhere))})"
    for axis, label in zip(axes[0], ("steps", minutes_label, "steps"), strict=True):
        axis.set_xlabel(label)
    for axis in axes[0, :2]:
        widen(axis, tables.main_metric)
    axes[0, 0].set_ylabel(plain(f"validation {metric_name(tables.main_metric)}"))
    axes[0, 2].set_ylabel("training loss")
    axes[0, 0].legend(frameon=False)
    return figure


def _smooth(values: Sequence[float]) -> np.ndarray:
    """Running mean over a twentieth of the curve."""
    width = max(1, len(values) // 20)
    padded = np.pad(np.asarray(values, float), (width - 1, 0), mode="edge")
    return np.convolve(padded, np.full(width, 1 / width), mode="valid") if len(values) else np.empty(0)


def structures(tables: Tables) -> Figure | None:
    names, labels = tables.structures, sorted({*tables.labels[:1], *tables.labels[-1:]})
    if not names:
        return None
    figure, axes = _figure(6 * len(labels), 1.2 + max(2.4, 0.28 * len(names) * len(tables.arms)), 1, len(labels))
    height = 0.8 / len(tables.arms)
    for axis, n in zip(axes[0], labels, strict=True):
        for number, (arm, shade) in enumerate(colours(tables).items()):
            values = [mean_and_spread(tables.scores(arm, n, tables.main_metric, name)) for name in names]
            at = np.arange(len(names)) + (number - (len(tables.arms) - 1) / 2) * height
            errors = [spread or 0.0 for _, spread, _ in values]
            axis.barh(at, [mean for mean, _, _ in values], height, xerr=errors, color=shade, label=plain(arm))
        if not any(bar.get_width() < 0 for bar in axis.patches):
            axis.set_xlim(left=0)  # a whisker of few seeds may reach where no score lies
        axis.set_yticks(range(len(names)), [plain(name) for name in names])
        axis.invert_yaxis()
        axis.set_xlabel(plain(metric_name(tables.main_metric)))
        axis.set_title(tables.labelled(n), fontsize=10)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return figure


def predictions(tables: Tables) -> Figure | None:
    """Draw predicted against true numbers, one colour per arm."""
    rows = tables.predictions
    if not rows:
        return None
    labels = sorted({row["labels"] for row in rows})
    labels = sorted({labels[0], labels[-1]})
    seed = min(row["seed"] for row in rows)
    figure, axes = _figure(4.6 * len(labels), 4.4, 1, len(labels))
    values = [row[name] for row in rows for name in ("truth", "prediction")]
    low, high = min(values), max(values)
    for axis, n in zip(axes[0], labels, strict=True):
        axis.plot([low, high], [low, high], color="#BBBBBB", linewidth=1)
        for arm, shade in colours(tables).items():
            shown = [row for row in rows if (row["arm"], row["labels"], row["seed"]) == (arm, n, seed)]
            truth, predicted = ([row[name] for row in shown] for name in ("truth", "prediction"))
            axis.plot(truth, predicted, "o", color=shade, label=plain(arm), markersize=4, alpha=0.75)
        axis.set_aspect("equal")
        axis.set_xlabel("true")
        axis.set_ylabel("predicted")
        axis.set_title(tables.labelled(n), fontsize=10)
    axes[0, 0].legend(frameon=False)
    return figure


def examples(tables: Tables) -> Figure | None:
    """A slice of each subject, or several that follow each other, with the truth and what each arm's net says; the
    legend names the structures in them."""
    subjects = list(tables.examples())
    if not subjects:
        return None
    arms = [arm for arm in tables.arms if any(arm in entries for _, entries in subjects)]
    rows = []
    for subject, entries in subjects:
        first: dict[str, Any] = next(iter(entries.values()))
        image = _volume(first["image"])
        truth = _volume(first["label"]) if first["label"] else None
        predictions = {arm: _volume(entries[arm]["prediction"]) for arm in arms if arm in entries}
        masks = [mask for mask in (truth, *predictions.values()) if mask is not None]
        z = int(np.argmax(sum((mask > 0).sum((0, 1)) for mask in masks[:1])))
        cells = [
            (first.get("title") or subject, None),
            ("truth", truth),
            *((arm, predictions.get(arm)) for arm in arms),
        ]
        count = min(first.get("slices", 1), image.shape[2])
        start = min(max(z - count // 2, 0), image.shape[2] - count)
        for place in range(start, start + count):
            slices = [
                (
                    title if place == start else "",
                    mask[:, :, place].T if mask is not None and mask.shape == image.shape else None,
                )
                for title, mask in cells
            ]
            rows.append((image[:, :, place].T, slices))
    drawn = [mask for _, slices in rows for _, mask in slices if mask is not None]
    present = sorted({int(label) for mask in drawn for label in np.unique(mask) if label > 0})
    names = tables.structure_names
    shades = class_colours(max([*present, *names], default=0))
    columns = 2 + len(arms)
    lines_of_legend = math.ceil(len(present) / columns)
    figure, axes = _figure(2.6 * columns, 3.0 * len(rows) + 0.2 * lines_of_legend, len(rows), columns)
    for line, (image, slices) in zip(axes, rows, strict=True):
        for column, (axis, (title, mask)) in enumerate(zip(line, slices, strict=True)):
            axis.axis("off")
            axis.set_title(plain(title), fontsize=9)
            if column == 1 and mask is None:  # there is no truth
                continue
            axis.imshow(image, cmap="gray", origin="lower")
            if mask is not None and present:
                shown, cmap = np.ma.masked_less_equal(mask, 0), ListedColormap(shades)
                axis.imshow(
                    shown, cmap=cmap, vmin=1, vmax=len(shades), origin="lower", alpha=0.65, interpolation="none"
                )
    patches = [Patch(color=shades[n - 1], alpha=0.65, label=plain(names.get(n, f"class {n}"))) for n in present]
    if patches:
        figure.legend(handles=patches, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    return figure


def _volume(path: str) -> np.ndarray:
    """The first channel in the nearest orientation to RAS."""
    volume: Any = nib.as_closest_canonical(nib.load(path))  # type: ignore[attr-defined]
    data = np.asarray(volume.dataobj)
    data = data[..., None] if data.ndim == 2 else data
    return data.reshape(*data.shape[:3], -1)[..., 0]
