"""Tuning: the same trials in every arm, chosen on validation alone; the validation scores are made up."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

from common.compare.collect import TRIALS, _write_table, choose_trials, trial_rows
from common.compare.execute import execute
from common.compare.plan import make_plan
from common.compare.report import write_report
from common.compare.settings import CompareError, read_settings
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
    ],
)
def test_what_cannot_be_tuned_is_refused(asked, given, sentence):
    with pytest.raises(CompareError, match=sentence):
        make_plan(asked(**given))


def test_the_report_has_every_trial_and_warns_at_the_edge(asked):
    plan = make_plan(asked())
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
    assert "| 2 | learning_rate x1 | **0.500 (0.003)** | 0.200 (0.01) |" in text
    assert "With 2 labels, mae is best at the edge of the grid, learning_rate 0.00316" in text
    assert "scratch is best at the edge" not in text and "3 trials in every arm" in text
    with (folder / "tune.csv").open() as file:
        assert [row["score"][:3] for row in csv.DictReader(file)] == ["0.1", "0.5", "0.4", "0.3", "0.2", "0.1"]
