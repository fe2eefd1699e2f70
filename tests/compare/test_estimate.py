"""Equal time and the arithmetic of the estimate; test_compare.py has the dry run itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from common.compare import estimate as module
from common.compare.collect import SUBJECTS
from common.compare.estimate import ASSUMED, Cost, equal_time, estimate
from common.compare.plan import Plan, Run
from common.compare.settings import Arm, Settings
from common.compare.statistics import detectable, variances
from common.compare.tables import Tables


class Config:
    metrics = {"val_mean_dice": "higher"}  # noqa: RUF012

    def get(self, name, default=None):
        return {"data": {"training": [1, 2, 3], "validation": [1, 2]}}.get(name, default)


@pytest.fixture
def plan(tmp_path):
    arms = (Arm("scratch"), Arm("mae", pretrain=("pretrain.json",)))
    settings = Settings(tmp_path / "bundle", tmp_path, arms, validations=4)
    runs = [Run("pretrain", "mae", (), {}, tmp_path / "pretrain/mae", steps=50, epochs=5, items=30, batch=3)]
    for arm in ("scratch", "mae"):
        folder = tmp_path / arm
        runs.append(Run("train", arm, (), {}, folder, 0, 1.0, 3, steps=20, epochs=20, items=3, batch=2))
        runs.append(Run("evaluate", arm, (), {}, folder, 0, 1.0, 3))
    return Plan(settings, tuple(runs), Config(), Config(), [{"image": f"/d/{n}.nii"} for n in range(10)])


COSTS = {
    "pretrain": Cost(start=10.0, step=1.0, peak_mb=1024.0, disk=2**30),
    "train": Cost(start=10.0, step=2.0, peak_mb=2048.0, disk=2**30),
    "evaluate": Cost(start=10.0, step=3.0, peak_mb=512.0, disk=0),
}


@pytest.fixture
def dry_runs(monkeypatch):
    asked = []

    def dry_run(run, plan, training=None):
        asked.append(run.stage)
        return COSTS[run.stage]

    monkeypatch.setattr(module, "dry_run", dry_run)
    monkeypatch.setattr(module, "_item", lambda plan: (0.5, 2**20))
    return asked


def test_the_sum_is_that_of_the_runs(plan, dry_runs):
    text = estimate(plan)
    pretrain = 10 + 50 * 1 + (30 + 2) * 0.5
    train = 10 + 20 * 2 + (3 + 2) * 0.5 + 4 * 2 * 3
    evaluate = 10 + 10 * (3 + 0.5)
    assert f"About {(pretrain + 2 * train + 2 * evaluate) / 60:.0f} min in all" in text
    assert f"train, mae, 3 labels, seed 0: 20 steps, {train:.0f} s" in text
    assert "2.0 GiB of memory at most a run, 3.00 GiB on disk" in text
    assert sorted(dry_runs) == ["evaluate", "pretrain", "train"]  # each kind once


def test_the_least_difference_that_can_be_found(plan, dry_runs, tmp_path):
    """By assumed variances, and by those of the runs that are there; scans of a subject are one subject."""
    assumed = detectable(ASSUMED, 3, 10)
    said = f"With 3 seeds and 10 test subjects, a true difference of {assumed:.3f} in val_mean_dice is found in 80 %"
    assert said in estimate(plan) and "assumed standard deviations" in estimate(plan)
    two = Plan(plan.settings, plan.runs, plan.train, plan.evaluate, [{"image": str(n), "subject": 1} for n in range(9)])
    assert "and 1 test subjects" in estimate(two)
    arms = {"scratch": {}, "mae": {}}
    about = {"arms": arms, "baseline": "scratch", "metrics": Config.metrics, "seeds": [0, 1]}
    (tmp_path / "comparison.json").write_text(json.dumps(about))
    random = np.random.default_rng(0)
    lines = [
        f"{arm},1.0,3,{seed},val_mean_dice,mean,s{subject},{random.normal(0.5, 0.05)}"
        for arm in arms
        for seed in (0, 1)
        for subject in range(5)
    ]
    (tmp_path / "subjects.csv").write_text("\n".join([",".join(SUBJECTS), *lines]) + "\n")
    found = variances(Tables(tmp_path).difference(("mae", "scratch"), 3).parts)
    assert f"difference of {detectable(found, 3, 10):.3f} in val" in estimate(
        plan
    ) and "runs that are done" in estimate(plan)


def test_what_is_done_is_not_counted(plan, dry_runs):
    for run in plan.runs:
        run.folder.mkdir(parents=True, exist_ok=True)
        run.outcome.write_text(json.dumps({"status": "done", "digest": run.digest()}))
    assert "About 0 s in all" in estimate(plan) and dry_runs == []
    plan.runs[1].outcome.write_text(json.dumps({"status": "done", "digest": "of another config"}))
    assert "About 76 s in all" in estimate(plan)


def test_equal_time_gives_scratch_the_seconds_of_pretraining(plan, dry_runs, tmp_path):
    outcome = Path(tmp_path / "pretrain/mae/pretrain.json")
    outcome.parent.mkdir(parents=True)
    outcome.write_text(json.dumps({"status": "done", "seconds": 100.0}))
    assert equal_time(plan, may_run=False) == {} and dry_runs == []
    assert equal_time(plan) == {("scratch", 3): 50, ("mae", 3): 0}
    assert equal_time(plan) == {("scratch", 3): 50, ("mae", 3): 0} and dry_runs == ["train"]  # kept for the next call
    outcome.write_text(json.dumps({"status": "failed", "seconds": 60.0}))
    assert equal_time(plan) == {("scratch", 3): 0, ("mae", 3): 0}
