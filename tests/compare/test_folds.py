"""Cross-validation: every subject is tested once a seed, and nothing that is tested was seen before."""

from __future__ import annotations

import csv
import functools
import json

import nibabel as nib
import numpy as np
import pytest

from common.compare.bundle_config import BundleConfig
from common.compare.child import read_outcome
from common.compare.collect import collect, subject_rows
from common.compare.settings import CompareError
from common.compare.tables import Tables


@pytest.fixture
def plan(plan_of):
    """``plan(**settings)``, by default of three folds and two seeds, with one pre-training for all seeds."""
    arms = {"scratch": None, "mae": {"pretrain": [], "pretrain_per_seed": False}}
    return functools.partial(plan_of, arms=arms, seeds="0,1", labels="1", folds=3)


def lists(run, plan):
    return BundleConfig(run.files, run.override, plan.settings.bundle).get("data")


def images(items):
    return {item["image"] for item in items}


def test_every_subject_is_tested_once_a_seed_by_nets_that_have_not_seen_it(plan):
    found = plan(arms="scratch")
    evaluations = [run for run in found.runs if run.stage == "evaluate"]
    assert [(run.seed, run.fold) for run in evaluations] == [(seed, fold) for seed in (0, 1) for fold in (0, 1, 2)]
    tested = [image for run in evaluations if run.seed == 1 for image in images(lists(run, found)["test"])]
    assert len(tested) == len(set(tested)) == len(found.test) == 6 and set(tested) == images(found.test)
    for run in (run for run in found.runs if run.stage == "train"):
        parts = {name: images(items) for name, items in lists(run, found).items()}
        assert len(parts["training"]) == 1 and parts["validation"]
        assert not parts["test"] & (parts["training"] | parts["validation"])
        assert run.folder == found.settings.output / f"runs/scratch/labels-0001/seed-{run.seed}/fold-{run.fold}"
    # both seeds have the same folds, and draw other labels of them
    assert [run.fold for run in found.runs if run.stage == "infer"] == [0]


def test_pretraining_is_one_a_fold_where_it_sees_scans_of_the_folds(plan, cohort):
    found = plan(pretrain_override={"datalist": str(cohort / "structures4.json"), "lists": ["training"]})
    pretrainings = [run for run in found.runs if run.stage == "pretrain"]
    assert [run.fold for run in pretrainings] == [0, 1, 2]
    for run in pretrainings:
        config = BundleConfig(run.files, run.override, found.settings.bundle)
        [test] = {
            tuple(sorted(images(lists(one, found)["test"])))
            for one in found.runs
            if one.stage == "evaluate" and one.fold == run.fold
        }
        assert not images(config.get("data")["training"]) & set(test)
        trained = [one for one in found.runs if one.stage == "train" and one.arm == "mae" and one.fold == run.fold]
        assert len(trained) == 2 and all(one.inputs[0].parent == run.folder for one in trained)


def test_pretraining_on_other_scans_is_one_for_all_folds(plan, cohort, tmp_path):
    items = [{"image": str(tmp_path / f"other{number}.nii.gz")} for number in range(2)]
    for number, item in enumerate(items):
        image = np.random.default_rng(number).random((40, 40, 40), np.float32)
        nib.save(nib.Nifti1Image(image, np.diag([4.0, 4.0, 4.0, 1.0])), item["image"])
    (tmp_path / "others.json").write_text(json.dumps({"training": items, "validation": [], "test": []}))
    found = plan(pretrain_override={"datalist": str(tmp_path / "others.json"), "lists": ["training"]})
    pretrainings = [run for run in found.runs if run.stage == "pretrain"]
    assert [run.fold for run in pretrainings] == [None]
    trained = [run for run in found.runs if run.stage == "train" and run.arm == "mae"]
    assert len(trained) == 6 and {run.inputs[0].parent for run in trained} == {pretrainings[0].folder}


def test_tuning_is_within_each_fold(plan):
    """Trials of one fold alone would have trained on what is tested in the others."""
    found = plan(arms="scratch", seeds="0", tune=2, chosen={("scratch", 1, 2): 1})
    trials = [run for run in found.runs if run.stage == "tune"]
    assert [(run.fold, run.trial) for run in trials] == [(fold, trial) for fold in (0, 1, 2) for trial in (0, 1)]
    trained = {run.fold: run.override.get("learning_rate") for run in found.runs if run.stage == "train"}
    assert trained == {0: None, 1: None, 2: trials[5].override["learning_rate"]}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"folds": 2}, "2 is below 3"),
        ({"override": "fold=1"}, "'fold' cannot be an override, --folds sets it"),
        ({"labels": "3"}, "--labels 3: the training list has only 2 items"),
        ({"folds": 7}, "6 subjects cannot be split into 7 folds"),
    ],
)
def test_folds_that_cannot_be_are_refused(plan, given, sentence):
    with pytest.raises(CompareError, match=sentence):
        plan(arms="scratch", **given)


def finish(plan, missing=()):
    for run in plan.runs:
        done = (run.arm, run.seed, run.fold) not in missing
        run.folder.mkdir(parents=True, exist_ok=True)
        run.outcome.write_text(json.dumps({"status": "done" if done else "failed", "seconds": 1.0, "steps": run.steps}))
        if run.stage == "evaluate" and done:
            (run.folder / "eval").mkdir(exist_ok=True)
            for metric in plan.evaluate.metrics:
                rows = "".join(f"{item['image']},0.5,0.5\n" for item in lists(run, plan)["test"])
                (run.folder / "eval" / f"{metric}_raw.csv").write_text("filename,class 1,mean\n" + rows)


def test_scans_have_one_name_in_all_folds(plan, cohort, tmp_path):
    """Also where a fold has one test scan, and no item has a subject."""
    content = json.loads((cohort / "structures4.json").read_text())
    items = [item for section in ("training", "validation", "test") for item in content[section]]
    moved = {"training": [], "validation": [], "test": []}
    for number, item in enumerate(items[:6]):
        folder = tmp_path / f"scans/{number}"
        folder.mkdir(parents=True)
        for key in ("image", "label"):
            (folder / f"{key}.nii.gz").symlink_to(cohort / item[key])
        section = ("training", "validation", "test")[min(number // 2, 2)]
        moved[section].append({key: str(folder / f"{key}.nii.gz") for key in ("image", "label")})
    (tmp_path / "list.json").write_text(json.dumps(moved))
    found = plan(arms="scratch", folds=5, examples=0, datalist=str(tmp_path / "list.json"))
    finish(found)
    collect(found, "x")
    tables = Tables(found.settings.output)
    subjects = {subject for _, subject in tables.scores("scratch", 1, "val_mean_dice")}
    assert subjects == {f"{number}/image" for number in range(6)}


def test_the_table_pools_the_folds_and_a_seed_that_lacks_one_is_incomplete(plan):
    found = plan(arms="scratch,again=scratch", examples=0)
    finish(found, missing={("again", 1, 2)})
    assert read_outcome(found.runs[0])["status"] == "done"
    rows = [row for run in found.runs if run.stage == "evaluate" and run.arm == "scratch"
            for row in subject_rows(run, found, {})]  # fmt: skip
    assert len({row["subject"] for row in rows}) == 6
    collect(found, "x")
    tables = Tables(found.settings.output)
    assert len(tables.scores("scratch", 1, "val_mean_dice")) == 12 and not tables.missing_seeds("scratch", 1)
    assert tables.missing_seeds("again", 1) == [1]
    assert tables.verdicts[("again", "scratch"), 1].text == "incomplete"
    with (found.settings.output / "results.csv").open() as file:
        mean = next(row for row in csv.DictReader(file) if row["structure"] == "mean")
    assert mean["subjects"] == "6" and float(mean["seconds"]) == 3.0
