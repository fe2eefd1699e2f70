"""Tuning: the same trials in every arm, chosen on validation alone; the validation scores are made up."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

from common.compare.child import _take_trial, read_outcome
from common.compare.collect import TRIALS, _write_table, choose_trials, cost_row, curve_rows, trial_rows
from common.compare.execute import execute
from common.compare.paper import protocol
from common.compare.plan import make_plan
from common.compare.report import write_report
from common.compare.settings import CompareError, read_settings
from common.compare.tables import Tables
from common.compare.time_left import seconds_left
from common.compare.trials import list_trials

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def asked(cohort, tiny, tmp_path):
    def make(**given):
        arguments = {
            "bundle": str(ROOT / "bundles/pretrain_once"),
            "arms": {"scratch": None, "mae": {"pretrain": [], "override": {"learning_rate": 0.01}}},
            "output": str(tmp_path / "out"),
            "config_file": tiny["unetr"],
            "dataset_dir": str(cohort),
            "seeds": "4,5",
            "labels": "2",
            "tune": True,
            "examples": 0,
        }
        return read_settings(**{**arguments, **given})

    return make


def finish(plan, scores, status="done"):
    """Write what trials would have left."""
    for run in plan.runs:
        if run.stage == "tune":
            run.folder.mkdir(parents=True, exist_ok=True)
            run.outcome.write_text(json.dumps({"status": status}))
            with SummaryWriter(str(run.folder / "tensorboard")) as writer:
                for step, value in enumerate(scores[run.arm][run.trial], start=1):
                    writer.add_scalar("val_mean_dice", value, step)


def test_every_arm_tries_multiples_of_its_own_rate_on_the_first_seed(asked):
    plan = make_plan(asked())
    trials = [run for run in plan.runs if run.stage == "tune"]
    found = [(run.arm, run.seed, run.override["seed"], run.override["learning_rate"]) for run in trials]
    assert found == [
        *(("scratch", 4, 4, rate) for rate in (0.000948, 0.003, 0.00948)),
        *(("mae", 4, 4, rate) for rate in (0.00316, 0.01, 0.0316)),
    ]
    assert {run.labels for run in trials} == {2}
    assert not any(Path(file).name == "evaluate.json" for run in trials for file in run.files)
    # until something is chosen, fine-tuning waits for all trials
    for run in (run for run in plan.runs if run.stage == "train"):
        assert {path.name for path in run.needs} >= {"tune.json"}
        assert len([path for path in run.needs if path.name == "tune.json"]) == 3


def test_the_best_of_validation_is_chosen_for_all_seeds_and_stages(asked):
    plan = make_plan(asked())
    # the first arm's best is in the middle of a run; of two equal ones the first is taken
    finish(plan, {"scratch": [[0.1, 0.2], [0.5, 0.3], [0.4, 0.4]], "mae": [[0.3], [0.2], [0.3]]})
    chosen = choose_trials(plan)
    assert chosen == {("scratch", 2, None): 1, ("mae", 2, None): 0}
    plan = make_plan(asked(), chosen=chosen)
    for stage in ("train", "evaluate"):
        runs = [run for run in plan.runs if run.stage == stage]
        rates = {(run.arm, run.seed): run.override["learning_rate"] for run in runs}
        assert rates == {
            ("scratch", 4): 0.003,
            ("scratch", 5): 0.003,
            ("mae", 4): 0.00316,
            ("mae", 5): 0.00316,
        }
    assert [run for run in plan.runs if run.stage == "tune"][2].override["learning_rate"] == 0.00948


def test_trials_on_two_seeds_are_judged_by_their_mean_and_one_that_gets_stuck_is_not_chosen(asked):
    settings = asked(tune_seeds=2, seeds="4,5,6", arms="scratch")
    plan = make_plan(settings)
    trials = [run for run in plan.runs if run.stage == "tune"]
    assert [(run.trial, run.seed, run.override["seed"]) for run in trials] == [
        (number, seed, seed) for seed in (4, 5) for number in range(3)
    ]
    assert len({run.folder for run in trials}) == 6
    trainings = [run for run in plan.runs if run.stage == "train"]
    assert [len([path for path in run.needs if path.name == "tune.json"]) for run in trainings] == [6, 6, 6]

    # the third is best on the first seed and stuck on the second
    scores = {4: [0.5, 0.6, 0.61], 5: [0.5, 0.6, 0.1]}
    for run in trials:
        finish(type(plan)(None, (run,), None, None, []), {"scratch": {run.trial: [scores[run.seed][run.trial]]}})
    assert choose_trials(plan) == {("scratch", 2, None): 1}
    rows = trial_rows(plan)
    assert [(row["trial"], row["seed"]) for row in rows if row["chosen"]] == [(1, 4), (1, 5)]
    plan = make_plan(settings, chosen=choose_trials(plan))
    trainings = [run for run in plan.runs if run.stage == "train"]
    assert [len([path for path in run.needs if path.name == "tune.json"]) for run in trainings] == [2, 2, 2]
    assert [run.tried[run.trial].name if run.tried else None for run in trainings] == [
        "trial-1-seed-4",
        "trial-1-seed-5",
        None,
    ]


def test_a_trial_that_failed_on_one_seed_is_not_chosen(asked):
    plan = make_plan(asked(tune_seeds=2, arms="scratch"))
    finish(plan, {"scratch": [[0.5], [0.6], [0.9]]})
    assert choose_trials(plan) == {("scratch", 2, None): 2}
    last = [run for run in plan.runs if run.stage == "tune" and run.trial == 2][1]
    last.outcome.write_text(json.dumps({"status": "started"}))
    assert choose_trials(plan) == {}
    last.outcome.write_text(json.dumps({"status": "failed", "reason": "NaN"}))
    assert choose_trials(plan) == {("scratch", 2, None): 1}


def _train(plan):
    """Do the runs of a plan with the comparison's own child processes; what it said."""
    said = []
    runs = tuple(run for run in plan.runs if run.stage in ("tune", "train"))
    execute(type(plan)(plan.settings, runs, plan.train, plan.evaluate, plan.test), said.append)
    assert not any("FAILED" in line for line in said), said
    return said


def test_a_training_that_a_trial_has_done_is_not_done_again(asked, tmp_path):
    settings = asked(arms="scratch", tune="learning_rate=[0.001,0.002]", steps=2, validations=1)
    plan = make_plan(settings)
    runs = tuple(run for run in plan.runs if run.stage == "tune")
    _train(type(plan)(settings, runs, plan.train, plan.evaluate, plan.test))
    chosen = choose_trials(plan)
    plan = make_plan(settings, chosen=chosen)
    first, second = (run for run in plan.runs if run.stage == "train")
    assert first.tried[first.trial].joinpath("model.pt").is_file()
    said = _train(plan)
    number = chosen["scratch", 2, None]
    assert any(f"seed 4: its trial {number} is the same training" in line for line in said)
    assert any("seed 5: " in line and line.endswith(" s") for line in said)
    assert not any(folder.joinpath("model.pt").exists() for folder in first.tried)
    outcome = read_outcome(first)
    assert outcome["status"] == "done" and outcome["trial"] == number
    assert outcome["digest"] == first.digest() and read_outcome(second).get("trial") is None
    assert {"train.log", "train.config.json", "model.pt", "tensorboard"} <= {
        path.name for path in first.folder.iterdir()
    }
    assert not list(first.folder.glob("tune.*"))

    # the same training, done: the trials' networks are gone
    shutil.move(first.folder, tmp_path / "taken")
    said = _train(plan)
    assert not any("is the same training" in line for line in said)
    one, other = (torch.load(folder / "model.pt", weights_only=True) for folder in (tmp_path / "taken", first.folder))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert [row["value"] for row in curve_rows(replace(first, folder=tmp_path / "taken"))] == [
        row["value"] for row in curve_rows(first)
    ]
    costs = [cost_row(run, read_outcome(run), plan)["taken"] for run in plan.runs if run.stage == "train"]
    assert costs == ["", ""] and cost_row(first, outcome, plan)["taken"] == "yes"


def _trial_done(asked, **given):
    """A training whose first trial, with made up files, was chosen."""
    settings = asked(arms="scratch", tune="learning_rate=[0.001,0.002]", steps=2, validations=1, **given)
    plan = make_plan(settings, chosen={("scratch", 2, None): 0})
    run = next(run for run in plan.runs if run.stage == "train")
    source = run.tried[0]
    (source / "tensorboard").mkdir(parents=True)
    for name in ("model.pt", "tune.log", "train.ckpt", "tensorboard/events", "tune.command.txt"):
        (source / name).write_text(name)
    (source / "tune.json").write_text(
        json.dumps({"status": "done", "digest": run.digest("tune"), "seconds": 3.0, "command": f"in {source}"})
    )
    return run, settings, plan


@pytest.mark.parametrize("stops_at", ["copytree", "write_json", "rename"])
def test_a_copy_that_is_killed_begins_again(asked, stops_at, monkeypatch):
    """Whatever was copied by then, nothing of it counts, not even a checkpoint that is kept."""
    run, settings, _ = _trial_done(asked, keep_checkpoints=True)
    run.folder.mkdir(parents=True)
    (run.folder / "evaluate.json").write_text('{"status": "skipped"}')
    (run.folder / "train.json").write_text('{"status": "skipped"}')
    (run.folder / "eval").mkdir()

    def killed(*given, **more):
        if stops_at == "copytree":
            Path(given[1]).mkdir()
            (Path(given[1]) / "train.ckpt").write_text("half")
        raise KeyboardInterrupt

    names = {"copytree": "shutil.copytree", "write_json": "common.compare.child.write_json"}
    with monkeypatch.context() as patch:
        patch.setattr(names.get(stops_at, "pathlib.Path.rename"), killed)
        with pytest.raises(KeyboardInterrupt):
            _take_trial(run, run.digest(), settings)
    assert not (run.folder / "train.ckpt").exists()
    assert _take_trial(run, run.digest(), settings)
    assert {path.name: path.read_text() for path in run.folder.glob("train.[cl]*")} == {
        "train.ckpt": "train.ckpt",
        "train.log": "tune.log",
        "train.command.txt": (run.folder / "train.command.txt").read_text(),
        "train.config.json": (run.folder / "train.config.json").read_text(),
    }
    assert (
        (run.folder / "tensorboard/events").is_file()
        and (run.folder / "evaluate.json").is_file()
        and (run.folder / "eval").is_dir()
    )
    assert sorted(path.name for path in run.folder.parent.iterdir()) == [run.folder.name]
    outcome = read_outcome(run)
    assert outcome["command"] + "\n" == (run.folder / "train.command.txt").read_text()
    assert str(run.folder) in outcome["command"] and "trial-0" not in outcome["command"]


def test_a_folder_of_the_earlier_version_goes_on(asked):
    """It has trials without networks, so the training is done; the estimates count it."""
    run, settings, _ = _trial_done(asked)
    assert run.is_copied
    (run.tried[0] / "model.pt").unlink()
    assert not run.is_copied and not _take_trial(run, run.digest(), settings)
    before = make_plan(asked(arms="scratch", tune="learning_rate=[0.001,0.002]", steps=2, validations=1))
    first = next(one for one in before.runs if one.stage == "train")
    assert first.trial is None and not first.is_copied  # one of its trials is done, and its network is gone
    old = settings.fixed()
    assert "tune_seeds" not in old and old == asked(tune_seeds=1, **_SHORT).fixed()
    assert asked(tune_seeds=2, **_SHORT).fixed() == {**old, "tune_seeds": 2}
    assert "tune_seeds" not in asked(tune_seeds=2, **{**_SHORT, "tune": False}).fixed()


_SHORT = {"arms": "scratch", "tune": "learning_rate=[0.001,0.002]", "steps": 2, "validations": 1}


def test_trainings_that_are_copied_take_no_time(asked):
    run, _, plan = _trial_done(asked)
    assert run.seed == 4
    trials = [one for one in plan.runs if one.stage == "tune"]
    trainings = [one for one in plan.runs if one.stage == "train"]
    other = type(plan)(plan.settings, (*trials, *trainings), plan.train, plan.evaluate, plan.test)
    outcomes = {one.outcome: {} for one in other.runs}
    done = {one.outcome: {"status": "done", "seconds": 10.0} for one in trials}
    # the training of the second seed is left
    assert seconds_left(other, outcomes | done, set(done), dict.fromkeys(outcomes, 0.0)) == 10.0


def test_a_settings_file_that_tunes_on_more_seeds_than_are_asked_for(asked, tmp_path):
    (tmp_path / "settings.json").write_text(json.dumps({"tune_seeds": 3}))
    assert asked(settings=str(tmp_path / "settings.json")).tune_seeds == 2
    assert asked(settings=str(tmp_path / "settings.json"), seeds="4").tune_seeds is None


def test_trials_of_folds_are_copied_into_their_folds(asked):
    settings = asked(tune_seeds=2, folds=3, labels="1", arms="scratch")
    plan = make_plan(settings, chosen={("scratch", 1, fold): 1 for fold in range(3)})
    for run in (run for run in plan.runs if run.stage == "train"):
        assert run.tried[1] == next(
            one.folder
            for one in plan.runs
            if (one.stage, one.trial, one.seed, one.fold) == ("tune", 1, run.seed, run.fold)
        )
        assert f"fold-{run.fold}" in run.tried[1].parts
        trial = next(one for one in plan.runs if one.folder == run.tried[1])
        assert trial.digest() == run.digest("tune") != run.digest()


def test_what_another_training_left_is_not_taken(asked):
    """Whatever changed the training since the trial: it has another digest."""
    settings = asked(arms="scratch", tune="learning_rate=[0.001,0.002]", steps=2, validations=1)
    plan = make_plan(settings, chosen={("scratch", 2, None): 0})
    run = next(run for run in plan.runs if run.stage == "train")
    source = run.tried[0]
    source.mkdir(parents=True)
    for name in ("model.pt", "tune.log"):
        (source / name).write_text("")
    for outcome in (
        {"status": "done", "digest": "other"},
        {"status": "started", "digest": run.digest("tune")},
        {"status": "failed", "digest": run.digest("tune")},
    ):
        (source / "tune.json").write_text(json.dumps(outcome))
        assert not _take_trial(run, run.digest(), settings) and not run.folder.exists()
    (source / "tune.json").write_text(json.dumps({"status": "done", "digest": run.digest("tune")}))
    run.folder.mkdir(parents=True)
    (run.folder / "train.ckpt").write_text("")  # it has begun by itself, and goes on
    assert not _take_trial(run, run.digest(), settings)
    (run.folder / "train.ckpt").unlink()
    assert _take_trial(run, run.digest(), settings) and (run.folder / "model.pt").is_file()


def test_a_trial_that_is_still_to_come_chooses_nothing_and_one_that_failed_is_passed_over(asked):
    plan = make_plan(asked())
    finish(plan, {"scratch": [[0.1], [0.5], [0.9]], "mae": [[0.3], [0.2], [float("nan")]]})
    last = [run for run in plan.runs if run.stage == "tune" and run.arm == "scratch"][2]
    last.outcome.write_text(json.dumps({"status": "started"}))
    assert choose_trials(plan) == {("mae", 2, None): 0}
    last.outcome.write_text(json.dumps({"status": "failed", "reason": "NaN"}))
    assert choose_trials(plan) == {("scratch", 2, None): 1, ("mae", 2, None): 0}


def test_fine_tuning_is_not_run_while_all_trials_failed(asked):
    plan = make_plan(asked(arms="scratch"))
    finish(plan, {"scratch": [[0.1]] * 3}, status="failed")
    said = []
    runs = tuple(run for run in plan.runs if run.stage == "train")
    execute(type(plan)(plan.settings, runs, plan.train, plan.evaluate, plan.test), said.append)
    assert len(said) == 2 and all("skipped, a run that it needs is not done: tune/scratch" in line for line in said)


def test_a_grid_and_a_random_part_of_it(asked):
    grid = "learning_rate=[0.1,0.2] weight_decay=[0,1,2]"
    assert len(list_trials(asked(tune=grid, arms="scratch"))) == 6
    part = list_trials(asked(tune=grid, arms="scratch", tune_trials=4))
    assert len(part) == 4 and part == list_trials(asked(tune=grid, arms="scratch", tune_trials=4))
    assert [trial["learning_rate"] for trial in list_trials(asked(tune=5))] == [
        "x0.316",
        "x0.562",
        "x1",
        "x1.78",
        "x3.16",
    ]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"tune": "learning_rate=[0.1,0.2]"}, "Arm 'mae' sets 'learning_rate', but --tune chooses"),
        ({"tune": "learning_rate=0.1"}, "learning_rate needs a list of two or more values"),
        ({"tune": {"max_epochs": [1, 2]}}, "'max_epochs' cannot be an override"),
        ({"tune": {"task": ["x1", "x2"]}, "arms": "scratch"}, "task of arm 'scratch' is 'structures4', which is not"),
        ({"tune": {"learning_rat": [1, 2]}}, "learning_rat"),
        ({"tune": None, "tune_seeds": 2}, "--tune_seeds goes with --tune"),
        ({"tune": None, "tune_trials": 2}, "--tune_trials goes with --tune"),
        ({"tune_seeds": 3}, r"--tune_seeds 3 is more than --seeds \(2\)"),
    ],
)
def test_what_cannot_be_tuned_is_refused(asked, given, sentence):
    with pytest.raises(CompareError, match=sentence):
        make_plan(asked(**given))


def test_tuning_can_be_turned_off_whatever_else_is_set(asked):
    plan = make_plan(asked(tune=False, tune_trials=2, tune_seeds=7))
    assert not any(run.stage == "tune" or run.tried for run in plan.runs)


@pytest.mark.parametrize(("number", "words"), [(2, "2 labels"), (1, "1 label")])
def test_the_report_has_every_trial_and_warns_at_the_edge(asked, number, words):
    plan = make_plan(asked(labels=[number]))
    finish(plan, {"scratch": [[0.1], [0.5], [0.4]], "mae": [[0.3], [0.2], [0.1]]})
    folder = plan.settings.output
    _write_table(folder / "tune.csv", TRIALS, trial_rows(plan))
    for name in ("subjects", "curves", "costs"):
        (folder / f"{name}.csv").write_text("arm\n")
    about = {"bundle": "b", "arms": {"scratch": {"description": ""}, "mae": {"description": ""}}, "seeds": [4, 5]}
    about |= {"baseline": "scratch", "metrics": {"val_mean_dice": "higher"}, "trials": list_trials(plan.settings)}
    about |= {"equal": "steps", "steps": 4, "packages": [], "machine": [], "command": ""}
    (folder / "comparison.json").write_text(json.dumps(about))
    text = write_report(folder).read_text()
    assert f"| {number} | learning_rate x1 | **0.500 (0.003)** | 0.200 (0.01) |" in text
    assert f"With {words}, mae is best at the edge of the grid, learning_rate 0.00316" in text
    assert "scratch is best at the edge" not in text and "3 trials in every arm" in text and "on seed 4;" in text
    with (folder / "tune.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["score"][:3] for row in rows] == ["0.1", "0.5", "0.4", "0.3", "0.2", "0.1"]

    # on two seeds: the mean
    _write_table(folder / "tune.csv", TRIALS, [*rows, *({**row, "seed": "5", "score": "0.7"} for row in rows)])
    (folder / "comparison.json").write_text(json.dumps({**about, "tune_seeds": 2}))
    text = write_report(folder).read_text()
    assert f"| {number} | learning_rate x1 | **0.600 (0.003)** | 0.450 (0.01) |" in text
    assert "on seeds 4, 5; the best by mean in validation" in text
    assert "from 3 trials in every arm, each on 2 seeds." in protocol(Tables(folder))
