"""The whole way, as a user would: on the tiny cohort; with ``--runslow``, two processes work, one is killed half-way.

The command is a process of its own where it is killed; elsewhere it runs in this process.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import io
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from common.compare import __main__ as module

ROOT = Path(__file__).resolve().parents[2]


def arguments(cohort, tiny, output, *more: str) -> list[str]:
    words = ["--bundle", str(ROOT / "bundles/pretrain_once")]
    words += ["--arms", "scratch,mae=pretrain.json", "--labels", "1", "--seeds", "0", "--steps", "4", "--examples", "0"]
    words += ["--config_file", tiny["unetr"], "--dataset_dir", str(cohort), "--output", str(output), *more]
    return words


@pytest.fixture(scope="module", autouse=True)
def elsewhere(tmp_path_factory):
    """The folder that the command is called from: one for all tests, so that their runs share a start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        yield


def call(words: list[str], said: io.StringIO | None = None) -> str:
    """Run the command in this process; what it printed."""
    said = io.StringIO() if said is None else said
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(sys, "argv", ["compare", *words])
        patch.setattr(module.signal, "signal", lambda *given: None)  # leaves pytest's handlers
        module.main()
    return said.getvalue()


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(request, cohort, tiny, child_path, tmp_path_factory):
    """A comparison, and what it printed.

    With ``--runslow``, two processes work on it, of which one is killed while the other waits for a run of it. That its
    numbers are those of an undisturbed one is what the arm `again` shows below.
    """
    output = tmp_path_factory.mktemp("compare") / "out"
    words = arguments(cohort, tiny, output)
    if not request.config.getoption("--runslow"):
        return output, call(words)
    first = subprocess.Popen(
        [sys.executable, "-m", "common.compare", *words],
        cwd=output.parent,
        env={**os.environ, "PYTHONPATH": child_path, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    training = output / "runs/scratch/labels-0001/seed-0/train.json"
    end = time.time() + 300
    while not training.exists():
        assert first.poll() is None and time.time() < end
        time.sleep(0.1)

    class Said(io.StringIO):
        def write(self, text):
            if "another process works on it" in text and first.poll() is None:
                os.killpg(first.pid, signal.SIGKILL)
                first.wait()
            return super().write(text)

    before = (output / "pretrain/mae/pretrain.json").stat().st_mtime_ns
    said = call(words, Said())
    assert first.poll() == -signal.SIGKILL and "pretrain, mae: done before" in said
    assert (output / "pretrain/mae/pretrain.json").stat().st_mtime_ns == before, "pre-training ran again"
    return output, said


def test_every_run_is_done_and_leaves_what_a_user_needs(finished):
    output, _ = finished
    costs = table(output / "costs.csv")
    assert [row["status"] for row in costs] == ["done"] * 5
    for row in costs:
        folder = output / row["folder"]
        for ending in ("command.txt", "config.json", "log"):
            assert (folder / f"{row['stage']}.{ending}").is_file()
        assert float(row["seconds"]) > 0 and float(row["peak_memory_mb"]) > 100
        if row["stage"] in ("pretrain", "train"):
            assert list(folder.glob("tensorboard/events.*")) and not list(folder.glob("*.ckpt"))
    assert {row["steps"] for row in costs if row["stage"] == "train"} == {"4"}


def test_numbers_of_the_report_are_those_of_the_subjects(finished):
    output, _ = finished
    raw: dict[tuple[str, int], list[float]] = {}
    for path in output.glob("runs/*/*/*/eval/val_mean_dice_raw.csv"):
        arm, labels = path.parts[-5], int(path.parts[-4].removeprefix("labels-"))
        with path.open() as file:
            raw[arm, labels] = [float(row["mean"]) for row in csv.DictReader(file, skipinitialspace=True)]
    assert len(raw) == 2 and all(len(values) == 2 for values in raw.values())
    for row in table(output / "results.csv"):
        if row["metric"] == "val_mean_dice" and row["structure"] == "mean":
            expected = statistics.mean(raw[row["arm"], int(row["labels"])])
            assert float(row["value"]) == pytest.approx(expected)
    report = (output / "report.md").read_text()
    for (arm, labels), values in raw.items():
        lines = [line for line in report.splitlines() if line.startswith(f"| {labels} ")]
        assert any(f"{statistics.mean(values):.3f}" in line for line in lines), (arm, labels)
    difference = statistics.mean(b - a for a, b in zip(raw["scratch", 1], raw["mae", 1], strict=True))
    assert f"{difference:+.3f}" in report


def test_tables_and_report(finished):
    output, said = finished
    comparison = json.loads((output / "comparison.json").read_text())
    assert comparison["metrics"] == {"val_mean_dice": "higher", "val_hd95": "lower"}
    structures = {row["structure"] for row in table(output / "subjects.csv")}
    assert structures == {"mean", "cortex", "subcortical grey matter", "white matter", "CSF"}
    curves = table(output / "curves.csv")
    assert {row["stage"] for row in curves} == {"pretrain", "train"}
    steps = [int(row["step"]) for row in curves if row["tag"] == "val_mean_dice" and row["arm"] == "mae"]
    assert max(steps) == 4
    assert "Outcome" in said and str(output / "report.md") in said


def test_models_of_a_comparison_are_tested_on_other_scans(finished, cohort, tiny, tmp_path):
    output, _ = finished
    other, again = tmp_path / "other", tmp_path / "again"
    shutil.copytree(cohort, other)
    for item in json.loads((cohort / "structures4.json").read_text())["test"]:
        scan = nib.load(cohort / item["image"])
        values = scan.get_fdata()
        nib.save(
            nib.Nifti1Image(np.where(values > 0, values.max() + 1 - values, 0), scan.affine), other / item["image"]
        )
    before = (output / "subjects.csv").read_bytes()
    words = arguments(cohort, tiny, again, "--evaluate_override", f"dataset_dir={other}", "--models_from", str(output))
    said = call(words)
    assert said.count("done before") == 3 and [row["status"] for row in table(again / "costs.csv")] == ["done"] * 5
    for path in output.glob("runs/*/*/*/model.pt"):
        assert (again / path.relative_to(output)).read_bytes() == path.read_bytes()
    assert (output / "subjects.csv").read_bytes() == before != (again / "subjects.csv").read_bytes()
    assert (
        f"Evaluated with settings that training did not have: dataset_dir {other}." in (again / "report.md").read_text()
    )
    assert call(words).count("done before") == 5
    with pytest.raises(SystemExit, match=f"{output} differs in steps: give the folder of a comparison that only tests"):
        call([*arguments(cohort, tiny, tmp_path / "third", "--models_from", str(output)), "--steps", "5"])
    with pytest.raises(SystemExit, match=f"{other} holds no comparison"):
        call(arguments(cohort, tiny, tmp_path / "third", "--models_from", str(other)))


def test_arms_with_the_same_seeds_are_identical(finished, cohort, tiny):
    """A/A: another arm from scratch, added to the folder; what is there is not run again."""
    output, _ = finished
    words = arguments(cohort, tiny, output, "--arms", "scratch,again=scratch")
    assert call(words).count("done before") == 2
    rows = table(output / "subjects.csv")
    by_arm = {
        arm: [row["value"] for row in rows if row["arm"] == arm and row["labels"] == "1"]
        for arm in ("scratch", "again")
    }
    assert by_arm["scratch"] and by_arm["scratch"] == by_arm["again"]
    assert "identical" in (output / "report.md").read_text()


def test_a_test_volume_is_shown(finished, cohort, tiny):
    """Asked for afterwards, and of one arm: the trained net labels it; test_report.py shows several."""
    output, _ = finished
    said = call(arguments(cohort, tiny, output, "--arms", "scratch", "--examples", "1"))
    assert said.count("done before") == 2
    [example] = json.loads((output / "examples.json").read_text())
    assert example["arm"] == "scratch" and Path(example["label"]).is_file()
    assert "data:image/png;base64," in (output / "report.html").read_text()


def test_a_failing_run_is_reported_with_its_reason(cohort, tiny, tmp_path):
    """Not a number in a training image, not the first: training stops with one sentence, and the report has it."""
    import nibabel as nib
    import numpy as np

    content = json.loads((cohort / "structures4.json").read_text())
    for section in content:
        if isinstance(content[section], list):
            for item in content[section]:
                item.update({key: str(cohort / item[key]) for key in ("image", "label")})
    bad = nib.load(content["training"][1]["image"])
    data = np.asarray(bad.dataobj, dtype=np.float32)
    data[3, 3, 3] = np.nan
    nib.save(nib.Nifti1Image(data, bad.affine), tmp_path / "broken.nii.gz")
    content["training"][1]["image"] = str(tmp_path / "broken.nii.gz")
    content["training"] = content["training"][:2]
    (tmp_path / "list.json").write_text(json.dumps(content))
    words = arguments(cohort, tiny, tmp_path / "out", "--datalist", str(tmp_path / "list.json"), "--arms", "scratch")
    call([*words, "--labels", "2"])
    row = next(row for row in table(tmp_path / "out/costs.csv") if row["stage"] == "train")
    assert row["status"] == "failed" and "broken.nii.gz" in row["reason"]
    assert "broken.nii.gz" in (tmp_path / "out/report.md").read_text()


def test_patience_ends_a_fine_tuning_before_its_cap(cohort, tiny, tmp_path):
    """At a rate of 0 no validation is better than the first; the second without a better one is the last."""
    words = ["--arms", "scratch", "--steps", "8", "--validations", "8", "--patience", "2"]
    call([*arguments(cohort, tiny, tmp_path / "out", *words), "--override", "learning_rate=0.0"])
    row = next(row for row in table(tmp_path / "out/costs.csv") if row["stage"] == "train")
    assert (row["status"], row["steps"], row["cap"], row["epochs"]) == ("done", "3", "8", "3")
    assert row["processes"] == "1" and row["device"] and float(row["device_hours"]) > 0
    assert "| 1 training + 1 validation labels | 1 of 1 |" in (tmp_path / "out/report.md").read_text()


def test_plan_lists_and_estimates_and_runs_nothing(cohort, tiny, tmp_path):
    said = call(arguments(cohort, tiny, tmp_path / "out", "--arms", "scratch", "--plan"))
    assert "train, scratch, 1 label, seed 0: 4 steps" in said
    assert "of memory at most per run" in said and "on disk" in said
    assert not (tmp_path / "out").exists()


def test_a_refused_comparison_leaves_no_folder(cohort, tiny, tmp_path):
    with pytest.raises(SystemExit, match="spelt"):
        call([*arguments(cohort, tiny, tmp_path / "out", "--arms", "scratch"), "--override", "spelt=1"])
    assert not (tmp_path / "out").exists()


def test_errors_are_one_sentence(tmp_path):
    with pytest.raises(SystemExit, match=r"^error: [^\n]* is not a bundle[^\n]*$"):
        call(["--bundle", str(tmp_path), "--arms", "scratch", "--output", "x"])


@pytest.mark.slow
def test_arms_that_differ_in_nothing_but_seeds_are_not_better(tmp_path, unchanged):
    """One short repetition of the twenty of experiments/compare_aa.py: whole trainings, two seeds of two arms."""
    spec = importlib.util.spec_from_file_location("compare_aa", ROOT / "experiments/compare_aa.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    words = ["--output", str(tmp_path), "--repetitions", "1", "--epochs", "4", "--subjects", "6"]
    with unchanged():
        counts = script.main(words)
    assert sum(counts.values()) == 1 and not {"better", "worse", "identical"} & set(counts)
