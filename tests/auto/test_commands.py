"""Running the commands of an automatic run: once, taken up again, and failing in a sentence."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from common.auto import __main__ as command_line
from common.auto.commands import Command, _lines, execute, parse_trial, training_commands
from common.auto.errors import RunError
from common.auto.plan import Plan
from common.auto.predict import Prediction
from common.bundles import bundle_folder
from common.json_files import read_json, write_json

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Script(Command):
    """A command that runs Python code in place of a bundle."""

    code: str = ""

    def words(self, python: str = "python", resume: bool = False) -> list[str]:
        return [sys.executable, "-c", self.code, *(["resume"] if resume else [])]


def script(folder: Path, code: str, **given) -> Script:
    return Script("step", folder, (), {}, folder / "step", folder, code=code, **given)


def test_a_step_runs_once_until_what_it_reads_changes(tmp_path):
    read = tmp_path / "list.json"
    read.write_text("1")
    said: list[str] = []
    command = script(tmp_path, "print('fine-tuning epoch 1/2: loss 1.0, 2.0 s'); print('else')", inputs=(read,))
    execute(command, tmp_path, said.append, "step")
    assert said == ["step ...", "  fine-tuning epoch 1/2: loss 1.0, 2.0 s"]
    assert "else" in (tmp_path / "logs" / "step.log").read_text()
    execute(command, tmp_path, said.append, "step")
    assert said[-1].startswith("step: done before")
    gone = script(tmp_path, command.code, inputs=(read,))
    object.__setattr__(gone, "makes", tmp_path / "gone")
    execute(gone, tmp_path, said.append, "step")
    assert said[-2] == "step ..."  # what it made was removed
    read.write_text("2")
    execute(command, tmp_path, said.append, "step")
    assert said[-2] == "step ..."


def test_a_step_runs_again_after_a_mask_was_corrected(tmp_path):
    (tmp_path / "mask.nii").write_bytes(b"1")
    (tmp_path / "list.json").write_text("")
    write_json(tmp_path / "list.json", {"test": [{"image": "/there/is/none.nii", "label": str(tmp_path / "mask.nii")}]})
    said: list[str] = []
    command = script(tmp_path, "", inputs=(tmp_path / "list.json",))
    execute(command, tmp_path, said.append, "step")
    execute(command, tmp_path, said.append, "step")
    assert said[-1].startswith("step: done before")
    (tmp_path / "mask.nii").write_bytes(b"12")
    execute(command, tmp_path, said.append, "step")
    assert said[-1] == "step ..."
    state = read_json(tmp_path / "state.json")
    del state["step"]["scans"]  # as a version wrote it that did not look at scans
    write_json(tmp_path / "state.json", state)
    execute(command, tmp_path, said.append, "step")
    assert said[-1].startswith("step: done before")


@pytest.mark.skipif(sys.platform != "linux", reason="the system tells a child of its parent's death on Linux alone")
def test_a_killed_run_leaves_no_training_behind(tmp_path):
    """It would go on writing in the folder in which the next call trains."""
    parent = f"""
import sys
from pathlib import Path
from common.auto.commands import _lines
words = [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"]
with open({str(tmp_path / "log")!r}, "wb") as log:
    for line in _lines(words, log):
        print(line, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True, cwd=ROOT) as run:
        assert run.stdout is not None
        child = int(run.stdout.readline())
        run.kill()
    end = time.monotonic() + 10
    while _lives(child) and time.monotonic() < end:
        time.sleep(0.05)
    assert not _lives(child)


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_an_interrupted_run_ends_its_training(tmp_path):
    """As by Ctrl-C in a notebook, where this process lives on."""
    words = [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"]
    with (tmp_path / "log").open("wb") as log:
        lines = _lines(words, log)
        child = int(next(lines))
        assert _lives(child)
        lines.close()
    assert not _lives(child)


def test_scans_without_a_label_map_end_the_command_with_a_sentence(tmp_path, monkeypatch, capsys):
    made = [Prediction("a", (), None, "done"), Prediction("b", (), None, "refused", "it is a CT")]
    monkeypatch.setattr(sys.modules["common.auto.predict"], "predict", lambda *given, **options: made)
    words = ["common.auto", "predict", "--model", "m", "--images", "i", "--output", str(tmp_path / "masks")]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit, match=r"^error: 1 of 2 scans got no label map\.$"):
        command_line.main()
    assert capsys.readouterr().out == f"Label maps: {tmp_path}/masks\n"
    del made[0]
    with pytest.raises(SystemExit, match="1 of 1"):
        command_line.main()
    assert capsys.readouterr().out == "", "no folder was written"
    made[0] = Prediction("a", (), None, "done")
    command_line.main()


def test_a_training_that_was_stopped_is_resumed_and_another_one_is_not(tmp_path):
    folder = tmp_path / "step"
    folder.mkdir()
    (folder / "train.ckpt").touch()
    code = "import sys; print('resume' in sys.argv); sys.exit(1)"
    with pytest.raises(RunError):
        execute(script(tmp_path, code, resumes=True), tmp_path, lambda _: None, "step")
    with pytest.raises(RunError):
        execute(script(tmp_path, code, resumes=True), tmp_path, lambda _: None, "step")
    with pytest.raises(RunError):
        execute(script(tmp_path, code + " ", resumes=True), tmp_path, lambda _: None, "step")
    lines = (tmp_path / "logs" / "step.log").read_text().splitlines()
    assert [line for line in lines if line in ("True", "False")] == ["False", "True", "False"]


def test_a_failure_is_a_sentence_with_the_reason(tmp_path):
    command = script(tmp_path, "import sys; print('many lines\\n\\nThe disk is full: free some.'); sys.exit(1)")
    with pytest.raises(RunError, match=r"step failed: The disk is full: free some\. \(see step\.log\)"):
        execute(command, tmp_path, lambda _: None, "step")
    assert read_json(tmp_path / "state.json")["step"]["status"] == "failed"


def test_a_trial_s_log_gives_speed_and_dice():
    log = (
        "> batches_per_epoch: 6\n"
        "fine-tuning epoch 1/3: loss 1.6, 9.0 s, about 00:18 left\n"
        "fine-tuning epoch 2/3: loss 1.2, 3.3 s, about 00:06 left\n"
        "fine-tuning epoch 3/3: loss 1.1, 3.0 s\n"
        "SupervisedEvaluator - INFO - Got new best metric of val_mean_dice: 0.5\n"
        "INFO - Epoch[3] Metrics -- val_mean_dice: 0.5125 \n"
        "ignite.engine.engine.SupervisedEvaluator - INFO - Epoch[3] Complete. Time taken: 00:00:04.500\n"
    )
    speed, dice = parse_trial(log, 40.0, 3)
    assert (speed.step, speed.volume, dice) == (0.5, 1.5, 0.5125)
    assert speed.start == pytest.approx(40 - 15.3 - 4.5)
    with pytest.raises(RunError, match="no epochs"):
        parse_trial("nothing", 1.0, 1)


def test_a_control_is_trained_only_where_there_is_something_to_compare(tmp_path):
    write_json(tmp_path / "plan.json", {})
    bundle = bundle_folder("ssl3d")

    def names(start, control, pool):
        plan = Plan("ssl3d", {}, (), start)
        return [one.name for one in training_commands(plan, bundle, tmp_path, control, pool)]

    images = [str(tmp_path / f"scans/{case}/t1.nii") for case in "ab"]
    write_json(tmp_path / "datalist.json", {"test": [{"image": image} for image in images]})
    predict = training_commands(Plan("ssl3d", {}, (), "scratch"), bundle, tmp_path, False, False)[-1]
    assert predict.options["dataset_dir"] == tmp_path / "scans"  # so that both have a place
    assert names("scratch", True, False) == ["training", "evaluate_training", "predict_test"]
    assert names("synthetic_brain", True, True) == [
        "training",
        "evaluate_training",
        "control",
        "evaluate_control",
        "predict_test",
        "predict_unlabelled",
    ]
