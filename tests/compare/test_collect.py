"""Tables from made-up run folders."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from common.compare.bundle_config import BundleConfig
from common.compare.collect import (
    _stem_of,
    choose_examples,
    cost_row,
    curve_rows,
    is_stale,
    mapped_label,
    mean_rows,
    prediction_rows,
    probe_rows,
    subject_rows,
    training_subjects,
    trial_rows,
)
from common.compare.plan import Plan
from common.compare.run import Run
from common.compare.settings import Arm, CompareError, Settings

KEY = {"arm": "scratch", "fraction": 0.5, "labels": 2, "seed": 0}


class Config:
    metrics = {"val_dice": "higher", "val_auc": "higher"}  # noqa: RUF012

    def get(self, name, default=None):
        return {"num_classes": 3}.get(name, default)


@pytest.fixture
def run(tmp_path):
    (tmp_path / "eval").mkdir()
    return Run("evaluate", "scratch", (), {"output_dir": str(tmp_path)}, tmp_path, 0, 0.5, 2)


def collected(run, test=()):
    plan = Plan(None, (run,), None, Config(), list(test))
    return list(subject_rows(run, plan, {1: "white matter"}))


def test_subjects_are_counted_where_they_have_several_scans(tmp_path):
    """Of what each seed draws, from the datalist as the run reads it."""
    for name in "abcdef":
        (tmp_path / f"{name}.nii").touch()
    items = [{"image": f"{name}.nii", "label": 1, "subject": name if name in "ab" else "c"} for name in "abcdef"]
    config = {
        "fraction": 1.0,
        "seed": 0,
        "data": {
            "_target_": "common.data.load_datalist",
            "path": str(tmp_path / "list.json"),
            "fraction": "@fraction",
            "seed": "@seed",
            "check": "none",
        },
    }
    (tmp_path / "train.json").write_text(json.dumps(config))
    files = (str(tmp_path / "train.json"),)

    def counted():
        (tmp_path / "list.json").write_text(json.dumps({"training": items}))
        runs = [
            Run("train", arm, files, {"fraction": fraction, "seed": seed}, tmp_path, seed, fraction, labels)
            for arm in ("scratch", "mae")
            for fraction, labels in ((0.5, 3), (1.0, 6))
            for seed in range(4)
        ]
        settings = SimpleNamespace(bundle=tmp_path, arms=[SimpleNamespace(name="scratch")])
        plan = Plan(settings, tuple(runs), BundleConfig(files, {}, tmp_path), None, [])
        drawn = {run.seed: plan.lists(run)["training"] for run in runs[:4]}
        return training_subjects(plan), sorted({len({x.get("subject") for x in part}) for part in drawn.values()})

    found, drawn = counted()
    assert found == {3: drawn, 6: [3]} and len(drawn) > 1
    for item in items[:2]:
        del item["subject"]
    found, drawn = counted()  # two subjects of their own, also if the draw has no others
    assert found[6] == [3] and {1, 2} <= {*found[3]} <= {1, 2, 3}
    for item in items[2:]:
        del item["subject"]
    assert counted()[0] == {}
    items[:] = [item | {"subject": str(number)} for number, item in enumerate(items)]
    assert counted()[0] == {}


@pytest.mark.parametrize("header", ["class0, class1", "white matter, CSF"])
def test_scores_a_subject_and_a_metric_of_the_whole(run, header):
    table = f"filename, {header}, mean\n/data/a/t1.nii.gz, 0.5, nan, 0.5\n/data/b/t1.nii.gz, 0.25, 0.75, 0.5\n"
    (run.folder / "eval/val_dice_raw.csv").write_text(table)
    (run.folder / "eval/metrics.csv").write_text("val_dice\t0.5\nval_auc\t0.875\n")
    rows = collected(run)
    found = {(row["metric"], row["structure"], row["subject"]): row["value"] for row in rows}
    assert found["val_dice", "mean", "a/t1"] == 0.5 and found["val_dice", "class 2", "b/t1"] == 0.75
    assert found["val_dice", "white matter", "b/t1"] == 0.25 and math.isnan(found["val_dice", "class 2", "a/t1"])
    assert found["val_auc", "mean", "all"] == 0.875
    means = {(row["metric"], row["structure"]): (row["value"], row["subjects"]) for row in mean_rows(rows)}
    assert means["val_dice", "class 2"] == (0.75, 1) and means["val_dice", "white matter"] == (0.375, 2)
    assert all(row[name] == value for row in rows for name, value in KEY.items())


def test_a_path_may_have_commas(run):
    table = 'filename,"white, matter",class1,mean\n/d/a, b/t,1.nii,0.2,nan,0.25\n/d/c.nii,0.5,0.5,0.5\n'
    (run.folder / "eval/val_dice_raw.csv").write_text(table)
    (run.folder / "eval/metrics.csv").write_text("val_auc\t0.5\n")
    found = {(row["structure"], row["subject"]): row["value"] for row in collected(run) if row["metric"] == "val_dice"}
    assert found["mean", "a, b/t,1"] == 0.25 and found["white matter", "a, b/t,1"] == 0.2
    assert found["class 2", "c"] == 0.5 and math.isnan(found["class 2", "a, b/t,1"])


def test_a_row_that_is_cut_off_is_named(run):
    (run.folder / "eval/val_dice_raw.csv").write_text("filename,class0,class1,mean\n/d/a.nii,0.2\n")
    with pytest.raises(CompareError, match=r"val_dice_raw\.csv, line 2 has fewer cells than its header"):
        collected(run)


def test_scans_of_one_subject_are_one_subject(run):
    table = "filename,class0,class1,mean\n/d/a1.nii,0.2,nan,0.2\n/d/a2.nii,0.4,0.8,0.6\n/d/b.nii,0.5,0.5,0.5\n"
    (run.folder / "eval/val_dice_raw.csv").write_text(table)
    (run.folder / "eval/metrics.csv").write_text("val_auc\t0.5\n")
    test = [{"image": f"/d/{name}.nii", "subject": name[0]} for name in ("a1", "a2", "b")]
    rows = [row for row in collected(run, test) if row["metric"] == "val_dice"]
    found = {(row["structure"], row["subject"]): row["value"] for row in rows}
    assert found["mean", "a"] == pytest.approx(0.4) and found["white matter", "a"] == pytest.approx(0.3)
    assert found["class 2", "a"] == 0.8 and found["mean", "b"] == 0.5 and len(found) == 6


def test_one_number_in_two_domains_is_two_people(run):
    """As in the datalist's own checks."""
    table = "filename,class0,class1,mean\n/d/A/1.nii,0.9,0.9,0.9\n/d/B/1.nii,0.1,0.1,0.1\n/d/B/2.nii,0.5,0.5,0.5\n"
    (run.folder / "eval/val_dice_raw.csv").write_text(table)
    (run.folder / "eval/metrics.csv").write_text("val_auc\t0.5\n")
    test = [{"image": f"/d/{domain}/{n}.nii", "subject": n, "domain": domain} for domain, n in ("A1", "B1", "B2")]
    means = {row["subject"]: row["value"] for row in collected(run, test) if row["structure"] == "mean"}
    assert means == {"A/1": 0.9, "B/1": 0.1, "2": 0.5, "all": 0.5}


def test_a_column_for_the_background_is_class_0(run):
    table = "filename,class0,class1,class2,mean\nx.nii,1,0.5,0.25,0.6\n"
    (run.folder / "eval/val_dice_raw.csv").write_text(table)
    (run.folder / "eval/metrics.csv").write_text("val_auc\t0.5\n")
    found = {row["structure"]: row["value"] for row in collected(run) if row["metric"] == "val_dice"}
    assert found == {"mean": 0.6, "class 0": 1.0, "white matter": 0.5, "class 2": 0.25}


def test_a_metric_that_was_not_saved_is_an_error(run):
    (run.folder / "eval/metrics.csv").write_text("val_dice\t0.5\n")
    with pytest.raises(CompareError, match="has no val_auc"):
        collected(run)


def test_predicted_numbers_of_scans(run):
    path = run.folder / "eval/predictions.csv"
    plan = Plan(None, (run,), None, Config(), [])
    assert list(prediction_rows(run, plan)) == []  # masks are predicted
    path.write_text("filename,label,prediction\n/d/a.nii,50,47.5\n/d/b.nii,,60\n")
    rows = list(prediction_rows(run, plan))
    assert [(row["subject"], row["prediction"]) for row in rows] == [("a", 47.5), ("b", 60.0)]
    assert rows[0]["truth"] == 50 and math.isnan(rows[1]["truth"]) and rows[0].items() >= KEY.items()
    path.write_text("filename,label,prediction,probability_0,probability_1\n/d/a.nii,1,0,0.9,0.1\n")
    assert list(prediction_rows(run, plan)) == []  # classes are predicted


def test_predictions_are_told_apart_where_one_name_begins_as_another():
    stems = ["scan", "scan_2"]
    assert [_stem_of(f"{name}_seg.nii.gz", stems) for name in (*stems, "other")] == [*stems, ""]


def test_a_result_of_other_settings_is_named(tmp_path):
    run = Run("evaluate", "scratch", (), {}, tmp_path, inputs=(tmp_path / "model.pt",))
    assert not is_stale(run, {"digest": "of a net that was deleted"})
    (tmp_path / "model.pt").write_bytes(b"x")
    assert is_stale(run, {"digest": "of another config"}) and not is_stale(run, {"digest": run.digest()})


def test_curves_against_steps_and_time_without_the_pause(tmp_path):
    """Ten steps per epoch; killed in epoch 2, and resumed an hour later."""
    attempts = [{"started": 1000.0, "seconds_before": 0.0}, {"started": 5000.0, "seconds_before": 30.0}]
    (tmp_path / "train.json").write_text(json.dumps({"attempts": attempts}))
    for first, times in ((1, {1: 1010.0, 2: 1025.0}), (2, {2: 5005.0, 3: 5020.0})):
        writer = SummaryWriter(tmp_path / "tensorboard", filename_suffix=str(first))
        for epoch, at in times.items():
            writer.add_scalar("val_dice", epoch / 10, epoch, walltime=at)
            writer.add_scalar("train_loss", 1.0, epoch * 10, walltime=at)
        writer.close()
    run = Run("train", "scratch", (), {}, tmp_path, 0, 0.5, 2, steps=30, epochs=3)
    rows = list(curve_rows(run))
    validation = [(row["step"], row["seconds"]) for row in rows if row["tag"] == "val_dice"]
    assert validation == [(10, 10.0), (20, 35.0), (30, 50.0)]
    assert [row["step"] for row in rows if row["tag"] == "train_loss"] == [10, 20, 30]


@pytest.mark.parametrize(("count", "shown"), [(1, "c"), (2, "ed"), (3, "ecd")])
def test_examples_are_the_worst_the_median_and_the_best(tmp_path, count, shown):
    """By the mean over the arms, of the first seed and the fewest labels."""
    scores = {"scratch": dict(zip("abcde", (0.7, 0.5, 0.6, 0.9, 0.1), strict=True)), "mae": dict.fromkeys("abcde", 0.5)}
    test = [{"image": f"/data/{name}.nii.gz"} for name in "abcde"]
    runs = []
    for arm, labels, seed in [("scratch", 2, 0), ("mae", 2, 0), ("scratch", 2, 1), ("scratch", 8, 0)]:
        folder = tmp_path / f"{arm}{labels}{seed}"
        (folder / "eval").mkdir(parents=True)
        override = {"output_dir": str(folder)}
        runs.append(Run("evaluate", arm, (), override, folder, seed, labels / 8, labels))
        runs[-1].outcome.write_text('{"status": "done"}')
        kept = scores[arm] if (labels, seed) == (2, 0) else {**scores[arm], "b": 0.0, "a": 1.0}
        lines = [f"/data/{name}.nii.gz,{kept[name]},{kept[name]}" for name in "abcde"]
        (folder / "eval" / "val_mean_dice_raw.csv").write_text("\n".join(["filename,class 1,mean", *lines]))
    evaluate = SimpleNamespace(metrics={"val_mean_dice": "higher"})
    settings = Settings(tmp_path, tmp_path, (Arm("scratch"), Arm("mae")), examples=count, seeds=(0, 1))
    found = choose_examples(Plan(settings, tuple(runs), None, evaluate, test))
    assert "".join(item["image"][6] for item in found) == shown
    assert choose_examples(Plan(settings, (), None, evaluate, test)) == []


@pytest.mark.parametrize("name", ["case.nii.gz", "CASE.NII.GZ"])
def test_a_true_map_of_more_than_256_classes_is_shown(tmp_path, name):
    label = tmp_path / name
    nib.save(nib.Nifti1Image(np.array([[[0, 7], [8, 9]]], np.int16), np.eye(4)), tmp_path / "map.nii.gz")
    (tmp_path / "map.nii.gz").rename(label)
    plan = SimpleNamespace(
        evaluate={"label_map": {0: [0], 5: [7], 300: [8, 9]}}, settings=SimpleNamespace(output=tmp_path)
    )
    (tmp_path / "examples").mkdir()
    shown = nib.load(mapped_label({"label": str(label)}, "case", plan))
    assert np.asarray(shown.dataobj).tolist() == [[[0, 5], [300, 300]]]


def test_rows_of_a_probe_name_their_structures(run):
    rows = [{"probe": "linear", "metric": "dice", "structure": number, "value": 0.5} for number in (1, 2)]
    rows.append({"probe": "linear", "metric": "dice", "value": 0.25})
    (run.folder / "probe-label.rows.json").write_text(json.dumps({"rows": rows}))
    found = list(probe_rows(replace(run, target="label"), {1: "white matter"}))
    assert [row["structure"] for row in found] == ["white matter", "class 2", "mean"]
    assert [row["value"] for row in found] == [0.5, 0.5, 0.25] and all(KEY.items() <= row.items() for row in found)


def test_a_trial_that_measured_something_else_cannot_be_chosen(run, tmp_path):
    (tmp_path / "tune.json").write_text(json.dumps({"status": "done"}))
    with pytest.raises(CompareError, match=r"its validation has no val_dice, which --tune needs to choose"):
        trial_rows(Plan(None, (replace(run, stage="tune", epochs=1),), None, Config(), []))


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        ({"machine": "NVIDIA H200, Linux", "peak_gpu_mb": 900.0}, (1, "NVIDIA H200", 0.5)),
        ({"machine": "NVIDIA H200, Linux", "peak_gpu_mb": 900.0, "nproc": 4}, (4, "NVIDIA H200", 2.0)),
        ({"machine": "NVIDIA H200, Linux"}, (1, "CPU", 0.5)),  # the GPU of its machine was not used
        ({"machine": "CPU, 16 cores, x86_64, Linux", "nproc": 2}, (2, "CPU, 16 cores, x86_64, Linux", 1.0)),
    ],
)
def test_a_run_has_the_hours_of_each_of_its_devices(tmp_path, outcome, expected):
    """As its own command says, whatever ``--processes`` the call has that writes the table."""
    run = Run("train", "scratch", (), {}, tmp_path / "run", 0, 0.5, 2, steps=40, epochs=10)
    plan = SimpleNamespace(settings=SimpleNamespace(output=tmp_path, processes=8))
    count = outcome.get("nproc")
    several = f"-m torch.distributed.run --standalone --nproc_per_node={count} " if count else ""
    given = {**outcome, "command": f"python {several}-m monai.bundle run", "seconds": 1800.0, "status": "done"}
    row = cost_row(run, {**given, "steps": 40}, plan)
    assert (row["processes"], row["device"], row["device_hours"]) == expected and row["epochs"] == 10
    assert cost_row(run, {**given, "steps": 12}, plan)["epochs"] == 3  # patience ended it
    waiting = cost_row(run, {}, plan)
    assert [waiting[key] for key in ("processes", "device", "device_hours", "epochs")] == [None] * 4
