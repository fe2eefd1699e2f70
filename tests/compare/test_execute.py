"""Running children: with small Python programs in place of bundle runs."""

from __future__ import annotations

import _thread
import importlib.util
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from common.checks import REFUSED
from common.child_process import failure_reason
from common.compare.child import read_outcome, run_child
from common.compare.collect import is_stale
from common.compare.execute import _waits_for, execute, hold_folder, take_models
from common.compare.launchers import Here
from common.compare.plan import Plan
from common.compare.run import Run
from common.compare.settings import Arm, CompareError, Settings

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Program(Run):
    """A run that is a program."""

    text: str = ""

    def command(self, settings):
        return [sys.executable, "-c", textwrap.dedent(self.text)]

    def config(self):
        return {"text": self.text}


@pytest.fixture
def settings(tmp_path):
    return Settings(tmp_path / "bundle", tmp_path / "out", (Arm("scratch"),))


def program(settings, name, text, stage="train", **given):
    return Program(stage, name, (), {}, settings.output / name, text=text, **given)


def run_all(settings, *runs):
    said = []
    execute(Plan(settings, runs, None, None, []), said.append)
    return said


def test_outcome_command_config_and_log(settings):
    run = program(settings, "a", "import time; x = b'x' * 200_000_000; time.sleep(3); print('hello')", steps=3)
    run_all(settings, run)
    outcome = read_outcome(run)
    assert outcome["status"] == "done" and outcome["steps"] == 3 and outcome["seconds"] > 0
    assert 190 < outcome["peak_memory_mb"] < 300
    assert (run.folder / "train.log").read_text().strip().endswith("hello")
    assert json.loads((run.folder / "train.config.json").read_text()) == run.config()
    assert "200_000_000" in (run.folder / "train.command.txt").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="what processes share is told by Linux alone")
def test_memory_is_that_of_all_processes_with_what_they_share_once(settings):
    text = """
    import os, time
    shared = bytearray(os.urandom(1)) * 120_000_000
    for number in range(3):
        if not os.fork():
            own = bytearray(os.urandom(1)) * 80_000_000
            time.sleep(2)  # measured after 0.05, 0.15, 0.35, 0.75 and 1.55 s
            os._exit(0)
    for number in range(3):
        os.wait()
    """
    run = program(settings, "a", text)
    run_all(settings, run)
    assert 120 + 3 * 80 < 1.05 * read_outcome(run)["peak_memory_mb"] < 650


def test_what_a_run_took_of_gpus_is_kept(settings):
    """As the first step of a bundle arranges it, in each process of the run."""
    text = """
    import os, subprocess, sys, torch
    from common.peak_memory import record_gpu_peak
    for name, value in (("is_available", True), ("is_initialized", True), ("device_count", 2)):
        setattr(torch.cuda, name, lambda value=value: value)
    torch.cuda.max_memory_reserved = lambda number: (1 + number) * 2**20
    record_gpu_peak()
    if "again" not in os.environ:
        subprocess.run(sys.orig_argv, env={**os.environ, "again": "yes"}, check=True)
    """
    run, other = program(settings, "a", text), program(settings, "b", "pass")
    run_all(settings, run, other)
    assert read_outcome(run)["peak_gpu_mb"] == 6.0 and "peak_gpu_mb" not in read_outcome(other)
    assert not [path for path in run.folder.iterdir() if "gpu" in path.name]


def test_finished_runs_are_kept_and_changed_ones_set_aside(settings):
    first = program(settings, "a", "open('/dev/null'); print('one')")
    run_all(settings, first)
    stamp = first.outcome.stat().st_mtime_ns
    assert any("done before" in line for line in run_all(settings, first))
    assert first.outcome.stat().st_mtime_ns == stamp
    changed = program(settings, "a", "print('two')")
    run_all(settings, changed)
    assert "two" in (settings.output / "a/train.log").read_text()
    assert "one" in (settings.output / "a.old-1/train.log").read_text()


def test_runs_of_other_scans_are_set_aside(settings):
    """They counted as done, so that one verdict could mix two data sets."""
    first = program(settings, "a", "print('one')", scans="one")
    run_all(settings, first)
    assert run_all(settings, first)[-1].endswith(" s)")
    assert "changed; what was there is now in a.old-1" in run_all(settings, replace(first, scans="two"))[0]
    assert read_outcome(first)["scans"] == "two"


def test_records_that_do_not_say_which_scans_they_had_count_with_a_word(settings):
    run = program(settings, "a", "print('one')", scans="one")
    run_all(settings, run)
    outcome = read_outcome(run)
    del outcome["scans"]
    run.outcome.write_text(json.dumps(outcome))
    assert run_all(settings, run)[-1].endswith(" s, which did not note the content of its scans)")
    assert not is_stale(run, outcome) and is_stale(run, {**outcome, "scans": "two"})


def test_finished_runs_of_other_code_are_named(settings):
    run = program(settings, "a", "print('one')")
    run_all(settings, run)
    assert run_all(settings, run)[-1].endswith(" s)")
    outcome = read_outcome(run)
    assert len(outcome["packages"]["common"]) == 12
    outcome["packages"]["common"] = "0" * 12
    run.outcome.write_text(json.dumps(outcome))
    assert run_all(settings, run)[-1].endswith(" s, by other code)")


def test_a_failure_has_its_reason_and_stops_only_what_needs_it(settings):
    broken = program(settings, "a", "raise ValueError('the mask of x.nii.gz has a label 9')")
    needs = program(settings, "b", "print(1)", needs=(settings.output / "a" / "train.json",))
    other = program(settings, "c", "print(2)")
    said = run_all(settings, broken, needs, other)
    assert read_outcome(broken)["status"] == "failed"
    assert read_outcome(broken)["reason"] == "ValueError: the mask of x.nii.gz has a label 9 (see train.log)"
    assert read_outcome(needs)["status"] == "skipped"
    assert read_outcome(needs)["reason"] == "a run that it needs is not done: a"
    assert read_outcome(other)["status"] == "done"
    assert any("FAILED" in line for line in said)
    # and is tried again by the next call
    mended = program(settings, "a", "print('mended')")
    assert not any("done before" in line for line in run_all(settings, mended))


def test_a_net_of_a_training_that_failed_half_way_is_not_evaluated(settings):
    model = settings.output / "a" / "model.pt"
    training = program(settings, "a", f"open({str(model)!r}, 'w'); raise ValueError('NaN in epoch 7')")
    evaluation = program(settings, "a", "print(1)", stage="evaluate", inputs=(model,), needs=(training.outcome,))
    run_all(settings, training, evaluation)
    assert model.is_file() and read_outcome(evaluation)["status"] == "skipped"


def test_a_skipped_run_keeps_the_digest_of_what_is_in_its_folder(settings):
    """Its checkpoint is of another encoder: the call after the one that skipped it must not go on with it."""
    gate = settings.output / "pre" / "pretrain.json"
    gate.parent.mkdir(parents=True)
    gate.write_text(json.dumps({"status": "done"}))
    first = program(settings, "a", "open('/dev/null'); raise SystemExit(1)", needs=(gate,))
    run_all(settings, first)
    digest = read_outcome(first)["digest"]
    changed = program(settings, "a", "print('other')", needs=(gate,))
    gate.write_text(json.dumps({"status": "failed"}))
    run_all(settings, changed)
    assert read_outcome(changed)["status"] == "skipped" and read_outcome(changed)["digest"] == digest
    gate.write_text(json.dumps({"status": "done"}))
    run_all(settings, changed)
    assert read_outcome(changed)["status"] == "done" and (settings.output / "a.old-1").is_dir()


def test_ctrl_c_is_no_failure(settings):
    run, never = program(settings, "a", "import time; time.sleep(60)"), program(settings, "b", "print(1)")
    said = []

    def say(text):
        said.append(text)
        if text.endswith(" ..."):
            threading.Timer(0.5, _thread.interrupt_main).start()

    # Shells start what runs in the background with SIGINT ignored, and children inherit that.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            execute(Plan(settings, (run, never), None, None, []), say)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert said[-1] == "[1/2] train, a: interrupted" and len(said) == 2
    assert read_outcome(run)["status"] == "started"  # so the next call goes on with it


def test_ctrl_c_ends_the_child_of_a_dry_run(settings):
    """Which runs in the main thread."""
    run = program(settings, "a", "import os, time; print(os.getpid(), flush=True); time.sleep(60)")
    log = run.folder / "train.log"

    def interrupt():
        while not (log.exists() and log.read_text().strip().split("\n")[-1].isdigit()):
            time.sleep(0.02)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # which ends the wait for the child

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            threading.Thread(target=interrupt, daemon=True).start()
            run_child(run, settings)
    finally:
        signal.signal(signal.SIGINT, handler)
    child = int(log.read_text().strip().split("\n")[-1])
    assert not Path(f"/proc/{child}").exists()


def test_models_from_the_folder_itself_are_refused(settings):
    run_all(settings)
    with pytest.raises(CompareError, match="is --output, too: give another --output"):
        take_models(replace(settings, models_from=settings.output))


def test_a_missing_input_is_named(settings):
    run = program(settings, "a", "print(1)", inputs=(settings.output / "gone.safetensors",))
    run_all(settings, run)
    assert read_outcome(run)["reason"].endswith("gone.safetensors")


def test_time_of_an_interrupted_run_is_that_of_its_attempts_without_the_pause(settings):
    run = program(settings, "a", "import time; time.sleep(0.3)")
    run.folder.mkdir(parents=True)
    log = run.folder / "train.log"
    log.write_text("killed here")
    started = time.time() - 1000
    os.utime(log, (started + 40, started + 40))
    attempt = {"started": started, "seconds_before": 5.0}
    outcome = {"digest": run.digest(), "status": "started", "attempts": [attempt]}
    run.outcome.write_text(json.dumps(outcome))
    run_all(settings, run)
    assert read_outcome(run)["attempts"][0] == attempt
    assert read_outcome(run)["seconds"] == pytest.approx(45.3, abs=5) and read_outcome(run)["seconds"] > 45.3


@pytest.mark.parametrize(
    ("text", "code", "reason"),
    [
        ("", -signal.SIGKILL, "killed by the system, most likely out of memory"),
        ("", -signal.SIGSEGV, "ended by signal SIGSEGV"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried", 1, "out of memory (see log); lower batch_size"),
        ("", 3, "exit status 3"),
        ("Traceback\n  File x\nRuntimeError: step\n\nNo datalist at /x: set it.\n", 1, "No datalist at /x: set it."),
        (
            "[rank1]: Traceback\n[rank1]: ValueError: too short.\n\n[rank1]: RuntimeError: step\nE1125 elastic failed\n"
            "Traceback\n  File x\ntorch.distributed.elastic.multiprocessing.errors.ChildFailedError:\n=====\n",
            1,
            "ValueError: too short. (see log)",
        ),
        (
            f"[rank1]: {REFUSED} (X=1 shows where).\n\n[rank1]: No datalist at /x: set it.\nE1125 elastic failed\n"
            "Traceback\n  File x\ntorch.distributed.elastic.multiprocessing.errors.ChildFailedError:\n=====\n",
            1,
            "No datalist at /x: set it. (see log)",
        ),
        ("epoch 1\nTraceback (most recent call last):\n  File x\nKeyError: 'y'\n", 1, "KeyError: 'y'"),
    ],
)
def test_reasons(tmp_path, text, code, reason):
    (tmp_path / "log").write_text("earlier output\n\n" + text)
    assert failure_reason(tmp_path / "log", len("earlier output\n\n"), code).startswith(reason)


SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = [{root!r}, {here!r}]
from test_execute import program, run_all
from common.compare.settings import Arm, Settings
settings = Settings(Path("bundle"), Path({output!r}), (Arm("scratch"),))
print("\\n".join(run_all(settings, *(program(settings, name, text) for name, text in {programs!r}))), flush=True)
"""


def start(settings, *programs):
    """A process of its own that does these runs."""
    given = {"root": str(ROOT), "here": str(Path(__file__).parent), "output": str(settings.output)}
    text = SCRIPT.format(**given, programs=programs)
    return subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)


def wait_for(condition, process):
    end = time.time() + 100
    while not condition():
        assert time.time() < end and process.poll() is None
        time.sleep(0.02)


COUNT = "import os, time; open({path!r}, 'a').write('x'); time.sleep({seconds})"


def test_two_processes_work_on_one_folder_and_share_its_runs(settings, tmp_path):
    """Each run is done once, by either; both come to the end with all runs done."""
    programs = [(name, COUNT.format(path=str(tmp_path / name), seconds=1.0)) for name in "abcd"]
    first = start(settings, *programs)
    wait_for(lambda: (tmp_path / "a").exists(), first)
    said = run_all(settings, *(program(settings, name, text) for name, text in programs))
    other = first.communicate()[0].splitlines()
    assert [(tmp_path / name).read_text() for name in "abcd"] == ["x"] * 4
    assert 0 < sum("done before" in line for line in said) < 4 and "another process works on it" in "".join(said)
    for lines in (said, other):
        assert len([line for line in lines if line.endswith((" s", " s)"))]) == 4, lines


def test_what_a_killed_process_left_is_gone_on_with_by_the_other(settings, tmp_path):
    marks = tmp_path / "marks"
    text = f"import os, time; open({str(marks)!r}, 'a').write('x')"
    text += f"; time.sleep(100 if open({str(marks)!r}).read() == 'x' else 0)"
    first = start(settings, ("a", text))
    wait_for(lambda: marks.exists() and marks.read_text(), first)
    threading.Timer(1.5, first.kill).start()
    said = run_all(settings, program(settings, "a", text))
    first.wait()
    assert "another process works on it" in said[0] and marks.read_text() == "xx"
    assert read_outcome(program(settings, "a", text))["status"] == "done"


@pytest.mark.slow  # the two tests before have the two processes
def test_what_failed_in_another_process_meanwhile_is_not_tried_again(settings, tmp_path):
    text = COUNT.format(path=str(tmp_path / "n"), seconds=1.0) + "; raise ValueError('no')"
    first = start(settings, ("a", text))
    wait_for(lambda: (tmp_path / "n").exists(), first)
    said = run_all(settings, program(settings, "a", text))
    first.wait()
    assert (tmp_path / "n").read_text() == "x" and "FAILED in another process, ValueError: no" in said[-1]
    run_all(settings, program(settings, "a", text))  # but by the next call
    assert (tmp_path / "n").read_text() == "xx"


# "debug" does the jobs in this process; "local" in others, as a cluster.
@pytest.mark.slow
@pytest.mark.parametrize("cluster", ["debug", "local"])
def test_jobs_of_a_cluster_do_the_runs(settings, cluster, child_path, monkeypatch):
    pytest.importorskip("submitit", reason="the extra `cluster` is not installed")
    # the jobs unpickle this module's programs
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), child_path]))
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    module = importlib.import_module("test_execute")
    settings = replace(settings, launcher={"cluster": cluster, "jobs": 2, "timeout_min": 5})
    names = [("a", "print(1)"), ("b", "raise ValueError('no')"), ("c", "print(3)")]
    runs = [module.program(settings, name, text) for name, text in names]
    needs = module.program(settings, "d", "print(4)", needs=(runs[0].outcome,), inputs=(runs[2].folder / "train.log",))
    said = run_all(settings, *runs, needs)
    assert [read_outcome(run)["status"] for run in (*runs, needs)] == ["done", "failed", "done", "done"]
    assert sum(": job " in line for line in said) == 4 and any("ValueError: no" in line for line in said)


def test_a_cluster_without_its_package_or_with_unknown_parameters_is_refused(settings, monkeypatch):
    settings = replace(settings, launcher={"cluster": "local", "nonsense": 1})
    if importlib.util.find_spec("submitit"):
        with pytest.raises(CompareError, match=r"(?s)--launcher local: .*nonsense"):
            run_all(settings)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(CompareError, match="pip install submitit"):
        run_all(settings)


def test_a_folder_holds_one_comparison(settings):
    other = replace(settings, override={"learning_rate": 1.0})
    for nothing_ran_yet in (other, settings):
        with hold_folder(nothing_ran_yet):
            pass
    run_all(settings)
    with hold_folder(replace(settings, seeds=(0, 1, 2, 3), arms=(*settings.arms, Arm("b")))):
        pass  # more of the same
    with pytest.raises(CompareError, match=r"holds another comparison, with override \{\} \(now"), hold_folder(other):
        pass


def test_several_devices_work_at_once_and_keep_the_order_of_what_depends(settings):
    """Two runs wait for each other's file, which ends only if they run at the same time; a third needs the first."""
    text = """
        import os, time
        open({mine!r}, "w").write(os.environ["CUDA_VISIBLE_DEVICES"])
        end = time.time() + 20
        while not os.path.exists({other!r}):
            assert time.time() < end
            time.sleep(0.02)
    """
    settings = replace(settings, devices=("0", "1"))
    a, b = (settings.output / name / "file" for name in "ab")
    first = program(settings, "a", text.format(mine=str(a), other=str(b)))
    second = program(settings, "b", text.format(mine=str(b), other=str(a)))
    third = program(settings, "c", "pass", inputs=(a,))
    run_all(settings, first, second, third)
    assert [read_outcome(run)["status"] for run in (first, second, third)] == ["done"] * 3
    assert {a.read_text(), b.read_text()} == {"0", "1"}


def test_runs_wait_for_those_that_write_what_they_read(settings):
    out = settings.output
    pretraining = program(settings, "pretrain/mae", "", "pretrain")
    encoder = pretraining.folder / "seed-0" / "encoder.safetensors"
    train = program(settings, "runs/mae", "", inputs=(encoder,), needs=(pretraining.folder / "pretrain.json",))
    scratch = program(settings, "runs/scratch", "")
    evaluation = program(settings, "runs/mae", "", "evaluate", inputs=(train.folder / "model.pt",))
    again = program(settings, "runs/scratch", "", "evaluate", inputs=(out / "elsewhere" / "model.pt",))
    runs = (pretraining, train, scratch, evaluation, again)
    found = [[other for other in runs if id(other) in _waits_for(runs)[id(run)]] for run in runs]
    assert found == [[], [pretraining], [], [train], [scratch]]


def test_it_sleeps_while_a_run_works(settings, monkeypatch):
    """A comparison takes no share of the core that its run has."""
    waits, wait = [], Here.wait
    monkeypatch.setattr(Here, "wait", lambda self, jobs: waits.append(len(jobs)) or wait(self, jobs))
    run_all(settings, program(settings, "a", "import time; time.sleep(3)"))
    assert waits and set(waits) == {1} and len(waits) < 20


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_a_killed_comparison_leaves_no_child_at_work(settings, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import sys
            from pathlib import Path
            sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]
            from test_execute import program, run_all
            from common.compare.settings import Arm, Settings
            settings = Settings(Path("bundle"), Path({str(settings.output)!r}), (Arm("scratch"),))
            run_all(settings, program(settings, "a", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"))
            """
        )
    )
    parent = subprocess.Popen([sys.executable, str(script)])
    log = settings.output / "a" / "train.log"
    end = time.time() + 120  # a loaded machine imports slowly
    while not (log.exists() and log.read_text().strip().split("\n")[-1].isdigit()):
        assert time.time() < end and parent.poll() is None
        time.sleep(0.05)
    child = int(log.read_text().strip().split("\n")[-1])
    parent.kill()
    parent.wait()
    while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split()[2]:
        assert time.time() < end
        time.sleep(0.05)
    assert read_outcome(program(settings, "a", ""))["status"] == "started"  # so the next call goes on with it


def test_a_system_without_locks_is_named_before_anything_runs(settings, monkeypatch):
    monkeypatch.setattr("common.compare.execute.HAS_LOCKS", False)
    refused = pytest.raises(CompareError, match="needs the file locks of Linux or macOS; on Windows run it in WSL")
    with refused, hold_folder(settings):
        pass
    assert not settings.output.exists()
