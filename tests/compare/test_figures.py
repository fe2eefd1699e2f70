from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from matplotlib.colors import to_rgba

from common.compare.figures import differences, examples, label_efficiency, predictions, structures
from common.compare.statistics import compare_arms
from common.visualize.colours import CLASSES


def scores(metric, values):
    """Two arms with one label number, two seeds and one subject; `values` are of the arms' seeds in turn."""
    table = {"scratch": values[:2], "mae": values[2:]}
    return SimpleNamespace(
        labels=[1, 5],
        arms=list(table),
        about={"baseline": "scratch"},
        main_metric=metric,
        scores=lambda arm, labels, metric: {(seed, "a"): value for seed, value in enumerate(table[arm])},
    )


@pytest.mark.parametrize("interval", [(0.0052, 0.0297), (-0.0338, 0.0504), (-0.0004, 0.0003), (-3.2, 12.9)])
def test_numbers_below_the_differences_do_not_overlap(interval):
    one = SimpleNamespace(interval=interval, parts=SimpleNamespace(mean=sum(interval) / 2))
    key = ("simtrot", "scratch"), 2
    tables = SimpleNamespace(
        subjects=1,
        arms=["scratch", "simtrot"],
        about={"margin": 0.01, "baseline": "scratch"},
        main_metric="val_mean_dice",
        metrics={"val_mean_dice": "higher"},
        verdicts={key: SimpleNamespace(text="better")},
        difference=lambda *_: one,
    )
    figure = differences(tables)
    figure.canvas.draw()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_xticklabels() if label.get_text()]
    (low, high), boxes = figure.axes[0].get_window_extent().intervalx, sorted(boxes, key=lambda box: box.x0)
    boxes = [box for box in boxes if low <= (box.x0 + box.x1) / 2 <= high]
    assert len(boxes) > 2
    assert all(one.x1 < two.x0 for one, two in pairwise(boxes))


def test_whiskers_of_structures_end_where_scores_end():
    tables = scores("val_mean_dice", [0.0, 0.65, 0.8, 0.81])
    tables.structures, tables.labelled = ["caudate"], str
    of_arm = tables.scores
    tables.scores = lambda arm, labels, metric, name: of_arm(arm, labels, metric)
    axis = structures(tables).axes[0]
    assert axis.get_xlim()[0] == 0 < axis.get_xlim()[1]
    assert min(point[0] for part in axis.collections for line in part.get_segments() for point in line) < 0


@pytest.mark.parametrize(
    ("metric", "values", "span"),
    [
        ("val_mean_dice", [0.315, 0.316, 0.318, 0.319], 0.1),
        ("val_hd95", [40.0, 40.1, 40.2, 40.2], 0.2 * 40.1),
        ("val_dice", [0.5, 0.5, 0.5, 0.5], 0.1),
    ],
)
def test_a_small_difference_does_not_fill_the_axis(metric, values, span):
    low, high = label_efficiency(scores(metric, values)).axes[0].get_ylim()
    assert high - low == pytest.approx(span, rel=0.01)
    assert (low + high) / 2 == pytest.approx((min(values) + max(values)) / 2, rel=0.01)


def test_a_large_difference_keeps_its_axis():
    low, high = label_efficiency(scores("val_mean_dice", [0.2, 0.3, 0.5, 0.6])).axes[0].get_ylim()
    assert low <= 0.2 and high >= 0.6 and high - low < 0.45


def test_whiskers_are_the_interval_of_the_mean_and_leave_the_axis_as_it_is():
    tables = scores("val_mean_dice", [0.2, 0.3, 0.5, 0.6])
    axis = label_efficiency(tables).axes[0]
    found = [tuple(line.get_ydata()) for line in axis.lines[-4:]]
    own = tables.scores("scratch", 1, "")
    expected = compare_arms(own, dict.fromkeys(own, 0.0), True).interval
    assert found[:2] == [pytest.approx(expected)] * 2 and expected[0] < 0 < axis.get_ylim()[0]


@pytest.fixture
def drawn(tmp_path):
    """The picture of one subject with the classes 1 and 3, given their names."""

    def draw(names, labels=(1, 3), **more):
        image = np.arange(6 * 6 * 4, dtype=np.float32).reshape(6, 6, 4)
        mask = np.zeros((6, 6, 4), np.uint8)
        for row, label in enumerate(labels):
            mask[row + 1, 1:4] = label
        for name, data in (("image", image), ("mask", mask)):
            nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / f"{name}.nii")
        entry = {"image": str(tmp_path / "image.nii"), "label": str(tmp_path / "mask.nii")}
        entry |= {"prediction": entry["label"], **more}
        tables = SimpleNamespace(
            arms=["scratch"], structure_names=names, examples=lambda: iter([("s0", {"scratch": entry})])
        )
        return examples(tables)

    return draw


@pytest.mark.parametrize(
    ("names", "texts"),
    [({1: "cortex", 2: "white matter", 3: "CSF"}, ["cortex", "CSF"]), ({}, ["class 1", "class 3"])],
)
def test_a_legend_names_the_structures_in_the_picture(drawn, names, texts):
    figure = drawn(names)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == texts
    overlay = figure.axes[1].images[1]
    for patch, label in zip(legend.get_patches(), (1, 3), strict=True):
        assert patch.get_facecolor()[:3] == pytest.approx(overlay.cmap(overlay.norm(label))[:3], abs=1e-6)
    assert legend.get_patches()[0].get_facecolor()[:3] == to_rgba(CLASSES[0])[:3]


@pytest.mark.parametrize(("asked", "shown"), [(1, [0]), (3, [0, 1, 2]), (9, [0, 1, 2, 3])])
def test_slices_that_follow_each_other_are_drawn_about_the_fullest(drawn, asked, shown):
    """As many as there are at most; titles stand above the first, and a truth that is not there is not drawn."""
    figure = drawn({}, slices=asked)
    grid = [figure.axes[start : start + 3] for start in range(0, len(figure.axes), 3)]
    images = [int(line[0].images[0].get_array()[0, 0]) for line in grid]
    assert images == shown  # the value of the first voxel is the number of the slice, and all are equally full
    assert [line[1].get_title() for line in grid] == ["truth"] + [""] * (len(shown) - 1)
    assert all(len(axis.images) == 2 for line in grid for axis in line[1:])
    without = drawn({}, slices=asked, label=None)
    assert all(not axis.images for axis in without.axes[1::3])


def test_nothing_segmented_needs_no_legend(drawn):
    assert not drawn({1: "cortex"}, labels=()).legends


def test_many_classes_are_drawn_in_the_colours_of_the_legend(drawn):
    figure = drawn({n: f"region {n}" for n in range(1, 34)}, labels=(8, 33))
    overlay = figure.axes[1].images[1]
    for patch, label in zip(figure.legends[0].get_patches(), (8, 33), strict=True):
        assert patch.get_facecolor()[:3] == pytest.approx(overlay.cmap(overlay.norm(label))[:3], abs=1e-6)


def test_predictions_of_the_fewest_and_the_most_labels():
    def row(arm, labels, truth, prediction, seed=0):
        return {"arm": arm, "labels": labels, "seed": seed, "truth": truth, "prediction": prediction}

    rows = [row("scratch", 1, 30, 50), row("mae", 1, 30, 40), row("mae", 5, 30, 35), row("mae", 9, 30, 31)]
    rows.append(row("mae", 9, 30, 99, seed=1))
    tables = SimpleNamespace(
        predictions=rows, arms=["scratch", "mae"], about={"baseline": "scratch"}, labelled="of {}".format
    )
    figure = predictions(tables)
    assert [axis.get_title() for axis in figure.axes] == ["of 1", "of 9"]
    drawn = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[1].lines[1:]}
    assert drawn == {"scratch": [], "mae": [[30, 31]]}
    assert predictions(SimpleNamespace(predictions=[])) is None
