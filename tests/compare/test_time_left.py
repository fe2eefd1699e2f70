"""The time left of a comparison, by made-up durations."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace

import pytest

from common.compare.execute import execute
from common.compare.plan import Plan
from common.compare.run import Run
from common.compare.settings import Arm, Settings
from common.compare.time_left import TimeLeft, seconds_left

MAE = Arm("mae", pretrain=("pretrain.json",))


@pytest.fixture
def plan(tmp_path):
    """Pre-training, then scratch and mae with 1 and 4 labels: eight runs of fine-tuning and evaluation."""
    settings = Settings(tmp_path / "bundle", tmp_path, (Arm("scratch"), MAE))
    pretraining = Run("pretrain", "mae", (), {}, tmp_path / "pretrain/mae", steps=50, items=30, batch=3)
    runs = [pretraining]
    for labels in (1, 4):
        for arm in ("scratch", "mae"):
            needs = (pretraining.outcome,) if arm == "mae" else ()
            folder = tmp_path / f"{arm}-{labels}"
            given = {"seed": 0, "labels": labels, "folder": folder}
            runs.append(Run("train", arm, (), {}, needs=needs, steps=20, items=labels, batch=2, **given))
            runs.append(Run("evaluate", arm, (), {}, needs=(runs[-1].outcome,), **given))
    return Plan(settings, tuple(runs), None, None, [])


def done(*runs_and_seconds):
    return {run.outcome: {"status": "done", "seconds": seconds} for run, seconds in runs_and_seconds}


def left(plan, outcomes, worked=None, at_once=1):
    return seconds_left(plan, outcomes, outcomes.keys(), worked or {}, at_once)


def test_nothing_is_said_before_each_stage_left_was_run_once(plan):
    pretraining, training, evaluation, *_ = plan.runs
    outcomes = {}
    for run, seconds in ((pretraining, 500.0), (training, 100.0)):
        assert left(plan, outcomes) is None
        outcomes |= done((run, seconds))
    assert left(plan, outcomes) is None  # how long an evaluation takes is unknown
    assert left(plan, outcomes | done((evaluation, 10.0))) == 3 * 110
    assert left(plan, done(*((run, 1.0) for run in plan.runs))) == 0


def test_runs_with_as_many_labels_are_preferred_to_others_of_their_kind(plan):
    runs = plan.runs
    outcomes = done(*zip(runs[:7], (500.0, 100.0, 10.0, 120.0, 14.0, 300.0, 30.0), strict=True))
    assert left(plan, outcomes) == 300 + 30
    del outcomes[runs[5].outcome], outcomes[runs[6].outcome]
    assert left(plan, outcomes) == 2 * (110 + 12)


def test_an_arm_with_another_network_is_estimated_by_its_own_runs_or_else_by_all(plan):
    other = replace(plan.settings, arms=(Arm("scratch"), replace(MAE, network=("large.json",))))
    plan = replace(plan, settings=other)
    outcomes = done(*zip(plan.runs[:3], (500.0, 100.0, 10.0), strict=True))
    assert left(plan, outcomes) == 3 * 110
    outcomes |= done((plan.runs[3], 700.0), (plan.runs[4], 70.0))
    assert left(plan, outcomes) == 110 + 770


def test_time_grows_with_steps_on_a_line_once_two_lengths_are_known(plan):
    runs = [replace(run, steps=run.steps and 10 * (1 + number)) for number, run in enumerate(plan.runs[1::2])]
    evaluations = plan.runs[2::2]
    plan = replace(plan, runs=tuple(run for pair in zip(runs, evaluations, strict=True) for run in pair))
    outcomes = done((runs[0], 30.0), *((run, 0.0) for run in evaluations))
    assert left(plan, outcomes) == pytest.approx(30 * (2 + 3 + 4))
    outcomes |= done((runs[1], 40.0))  # 20 s to start and a second per step
    assert left(plan, outcomes) == pytest.approx(50 + 60)
    outcomes |= done((runs[1], 90.0))  # no line with a start of less than 0 s
    assert left(plan, outcomes) == pytest.approx((30 + 40) * 120 / 30)


def test_what_was_worked_and_what_runs_at_the_same_time_count(plan):
    outcomes = done(*zip(plan.runs[:3], (500.0, 100.0, 10.0), strict=True))
    assert left(plan, outcomes, {plan.runs[3].outcome: 40.0}) == 3 * 110 - 40
    assert left(plan, outcomes, {plan.runs[3].outcome: 400.0}) == 3 * 110 - 100
    assert left(plan, outcomes, at_once=2) == 1.5 * 110
    assert left(plan, outcomes, at_once=100) == 100  # no run is shared


def test_what_will_be_skipped_takes_no_time(plan):
    pretraining, training, evaluation, *_ = plan.runs
    outcomes = done((training, 100.0), (evaluation, 10.0)) | {pretraining.outcome: {"status": "failed"}}
    assert left(plan, outcomes) == 110


def test_small_stages_count_once_one_of_them_is_done(plan):
    runs = [Run("infer", arm, (), {}, plan.settings.output / arm, labels=1) for arm in ("scratch", "mae")]
    plan = replace(plan, runs=(*plan.runs[1:3], *runs))
    outcomes = done(*zip(plan.runs[:2], (100.0, 10.0), strict=True))
    assert left(plan, outcomes) == 0
    assert left(plan, outcomes | done((runs[0], 7.0))) == 7


def write(run, **outcome):
    run.folder.mkdir(parents=True, exist_ok=True)
    run.outcome.write_text(json.dumps(outcome))


def test_a_resumed_comparison_says_so_at_once_and_counts_what_an_interrupted_training_worked(plan):
    for run, seconds in zip(plan.runs[:3], (500.0, 1800.0, 60.0), strict=True):
        write(run, status="done", seconds=seconds, digest="a")
    interrupted, began = plan.runs[3], time.time() - 10_000
    write(interrupted, status="started", digest="a", attempts=[{"started": began, "seconds_before": 200.0}])
    log = interrupted.folder / "train.log"
    log.write_text("")
    os.utime(log, (began + 700, began + 700))
    clock = TimeLeft(plan, plan.runs)
    assert [clock.begin(run) for run in plan.runs[:3]] == [""] * 3  # which are not done again
    for run in plan.runs[:3]:
        clock.end(run)
    assert clock.begin(interrupted) == "about 78 min left"  # 3 x 31 min less 15 min


def test_runs_of_an_earlier_call_count_as_done_until_one_of_them_has_changed(plan):
    for run, seconds in zip(plan.runs[:5], (500.0, 1800.0, 60.0, 1800.0, 60.0), strict=True):
        write(run, status="done", seconds=seconds, digest="a")
    clock = TimeLeft(plan, plan.runs)
    clock.begin(plan.runs[0])
    write(plan.runs[0], status="done", seconds=500.0, digest="b")
    clock.end(plan.runs[0])
    assert clock.begin(plan.runs[5]) == "about 2.1 h left"  # the four runs of fine-tuning


def test_stages_to_come_count_and_failures_of_stages_before_do_not(plan):
    pretraining, *rest = plan.runs
    write(pretraining, status="failed")
    for run, seconds in zip(rest[:2], (100.0, 20.0), strict=True):
        write(run, status="done", seconds=seconds)
    assert TimeLeft(plan, rest).begin(rest[4]) == "about 2.0 min left"  # scratch with 4 labels
    assert TimeLeft(plan, [pretraining, *rest]).begin(rest[4]) == ""  # it is tried again, and takes who knows how long


def test_the_line_of_a_run_that_begins_has_it(plan, monkeypatch):
    """A run of the first stage; those of the others wait."""
    monkeypatch.setattr("common.compare.child.run_child", lambda *given: {"status": "done", "seconds": 100.0})
    monkeypatch.setattr(Run, "digest", lambda run: "a")
    said = []
    execute(replace(plan, runs=plan.runs[:4]), said.append, plan)
    assert said == [
        "[1/4] pretrain, mae ...",
        "[1/4] pretrain, mae: 100 s",
        "[2/4] train, scratch, 1 label, seed 0 ...",
        "[2/4] train, scratch, 1 label, seed 0: 100 s",
        "[3/4] evaluate, scratch, 1 label, seed 0 ...",
        "[3/4] evaluate, scratch, 1 label, seed 0: 100 s",
        "[4/4] train, mae, 1 label, seed 0 ... about 10 min left",
        "[4/4] train, mae, 1 label, seed 0: 100 s",
    ]
