"""Equal time and the arithmetic of the estimate; test_compare.py has the dry run itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common.compare import estimate as module
from common.compare.bundle_config import BundleConfig
from common.compare.collect import SUBJECTS
from common.compare.estimate import ASSUMED, Cost, equal_time, estimate
from common.compare.plan import Plan
from common.compare.run import Run
from common.compare.settings import Arm, CompareError, Settings
from common.compare.statistics import detectable, variances
from common.compare.tables import Tables


class Config:
    metrics = {"val_mean_dice": "higher"}  # noqa: RUF012
    ids = ("data",)

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
    assert round((pretrain + 2 * train + 2 * evaluate) / 60, 1) == 5.3
    assert "About 5.3 min in all" in text
    assert f"train, mae, 3 labels, seed 0: 20 steps, {train:.0f} s" in text
    assert "2.0 GiB of memory at most per run, 3.00 GiB on disk" in text
    assert sorted(dry_runs) == ["evaluate", "pretrain", "train"]  # each kind once


def test_the_least_difference_that_can_be_found(plan, dry_runs, tmp_path):
    """By assumed variances, and by those of the runs that are there; scans of a subject are one subject."""
    assumed = detectable(ASSUMED, 3, 10)
    said = f"With 3 seeds and 10 test subjects, a true difference of {assumed:.3f} in val_mean_dice is found in 80 %"
    assert said in estimate(plan) and "assumed standard deviations" in estimate(plan)
    two = Plan(plan.settings, plan.runs, plan.train, plan.evaluate, [{"image": str(n), "subject": 1} for n in range(9)])
    assert "and 1 test subject, a true" in estimate(two)
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
    assert f"difference of {detectable(found, 3, 10):.3f} in val" in estimate(plan) and "finished runs" in estimate(
        plan
    )


def test_what_is_done_is_not_counted(plan, dry_runs):
    for run in plan.runs:
        run.folder.mkdir(parents=True, exist_ok=True)
        run.outcome.write_text(json.dumps({"status": "done", "digest": run.digest()}))
    assert "About 0 s in all" in estimate(plan) and dry_runs == []
    plan.runs[1].outcome.write_text(json.dumps({"status": "done", "digest": "of another config"}))
    assert "About 76 s in all" in estimate(plan)


def test_a_reference_of_another_network_may_stand_first(tmp_path, monkeypatch):
    """Each network is evaluated by its own dry run, with a model of its own."""
    configs = tmp_path / "bundle/configs"
    configs.mkdir(parents=True)
    network = {"network_def": {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3}}
    (configs / "evaluate.json").write_text(json.dumps(network | {"metrics": Config.metrics}))
    (configs / "other.json").write_text(json.dumps({"network_def#in_features": 5}))
    base, other = str(configs / "evaluate.json"), str(configs / "other.json")
    arms = (Arm("reference", network=(other,)), Arm("scratch"))
    settings = Settings(tmp_path / "bundle", tmp_path, arms, validations=4)
    runs = []
    for arm, files in (("reference", (base, other)), ("scratch", (base,))):
        runs.append(Run("train", arm, files, {}, tmp_path / arm, 0, 1.0, 3, steps=20, epochs=20, items=3, batch=2))
        runs.append(Run("evaluate", arm, files, {}, tmp_path / arm, 0, 1.0, 3))
    shapes = []

    def run_child(run, settings, device):
        shapes.append(tuple(torch.load(run.folder / "model.pt", weights_only=True)["weight"].shape))
        return {"status": "done", "seconds": 5.0 * shapes[-1][1], "peak_memory_mb": 1.0}

    dry_run = module.dry_run
    monkeypatch.setattr(module, "run_child", run_child)
    monkeypatch.setattr(
        module, "dry_run", lambda run, *more: COSTS["train"] if run.stage == "train" else dry_run(run, *more)
    )
    monkeypatch.setattr(module, "_item", lambda plan: (0.5, 2**20))
    shared = BundleConfig([base], {}, tmp_path / "bundle")
    shared.get = Config().get
    text = estimate(
        Plan(settings, tuple(runs), shared, BundleConfig([base], {}, tmp_path / "bundle"), [{"image": "a"}])
    )
    assert shapes == [(3, 5), (3, 2)]
    assert "evaluate, reference, 3 labels, seed 0: 1 volumes, 26 s" in text
    assert "evaluate, scratch, 3 labels, seed 0: 1 volumes, 10 s" in text


def test_equal_time_gives_scratch_the_seconds_of_pretraining(plan, dry_runs, tmp_path):
    outcome = Path(tmp_path / "pretrain/mae/pretrain.json")
    outcome.parent.mkdir(parents=True)
    outcome.write_text(json.dumps({"status": "done", "seconds": 100.0}))
    assert equal_time(plan, may_run=False) == {} and dry_runs == []
    assert equal_time(plan) == {("scratch", 3): 50, ("mae", 3): 0}
    assert equal_time(plan) == {("scratch", 3): 50, ("mae", 3): 0} and dry_runs == ["train"]  # kept for the next call
    more = [replace(run, labels=1) for run in plan.runs if run.stage == "train"]
    added = replace(plan, runs=(*plan.runs, *more))
    expected = {("scratch", 3): 50, ("mae", 3): 0, ("scratch", 1): 50, ("mae", 1): 0}
    assert equal_time(added, may_run=False) == {("scratch", 3): 50, ("mae", 3): 0}
    assert equal_time(added) == expected and dry_runs == ["train", "train"]
    arms = (*plan.settings.arms, Arm("again"))  # another from scratch changes nothing for the others
    runs = [replace(run, arm="again") for run in added.runs if run.stage == "train" and run.arm == "scratch"]
    added = replace(added, settings=replace(plan.settings, arms=arms), runs=(*added.runs, *runs))
    del dry_runs[:]
    assert equal_time(added) == expected | {("again", 3): 50, ("again", 1): 50} and dry_runs == ["train"]
    arms = (*added.settings.arms, Arm("slower", encoder_of="mae"))  # has cost the seconds of that encoder as well
    runs = [replace(run, arm="slower") for run in added.runs if run.stage == "train" and run.arm == "mae"]
    borrowed = replace(added, settings=replace(plan.settings, arms=arms), runs=(*added.runs, *runs))
    again = {("again", 3): 50, ("again", 1): 50}
    assert equal_time(borrowed) == expected | again | {("slower", 3): 0, ("slower", 1): 0}
    outcome.write_text(json.dumps({"status": "failed", "seconds": 60.0}))
    assert equal_time(plan) == {("scratch", 3): 0, ("mae", 3): 0, ("mae", 1): 0}


def test_a_dry_run_of_frozen_norms_has_batch_norms(plan, monkeypatch):
    """Its encoder is not made yet, and frozen norms are refused without it."""
    seen = []
    monkeypatch.setattr(Plan, "config", lambda self, run: Config())
    monkeypatch.setattr(module, "run_child", lambda run, *_: seen.append(run.override) or {"status": "", "reason": "x"})
    for override in ({"pretrained_encoder": "x", "norm": "frozen"}, {"pretrained_encoder": "x", "norm": "group"}):
        with pytest.raises(CompareError, match="would fail: x"):
            module.dry_run(replace(plan.runs[1], override=override), plan)
    assert [(one["pretrained_encoder"], one["norm"]) for one in seen] == [(None, "batch"), (None, "group")]
