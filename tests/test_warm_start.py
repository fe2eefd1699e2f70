"""A command that the server forks is, and ends, as one of a process of its own."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from common import warm_start
from common.child_process import PlainChild, child_environment
from common.peak_memory import GPU_RECORD, PeakMemory
from common.warm_start import SWITCH, WarmChild, start_child

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or torch.cuda.is_available(), reason="commands start warm on Linux without a GPU alone"
)

STATE = (
    f"""
import importlib
for name in {warm_start.IMPORTS}:
    importlib.import_module(name)
"""
    + """
import json, os, random, signal, sys, threading, warnings
import numpy as np, torch
from monai.transforms import Randomizable
main = sys.modules["__main__"]
print(json.dumps({
    "words": [sys.argv, sys.orig_argv, sys.executable, __name__, __spec__.name, __file__, __package__],
    "main": main.__dict__ is globals() and main.__spec__.name,
    "environment": sorted(os.environ.items()),
    "path": [os.getcwd(), sys.path],
    "warnings": [str(one) for one in warnings.filters],
    "input": os.readlink("/proc/self/fd/0"),
    "output": [os.fstat(1).st_ino, sys.stdout.write_through, sys.stdout.encoding, sys.stdout.errors],
    "error": [os.fstat(2).st_ino, sys.stderr.write_through, sys.stderr.encoding, sys.stderr.errors],
    "descriptors": sorted(os.path.basename(os.readlink(f"/proc/self/fd/{one}")) for one in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{one}")),
    "group": os.getpgid(0) == os.getpid(),
    "signals": [str(signal.getsignal(one)) for one in sorted(signal.valid_signals()) if one != signal.SIGCHLD],
    "threads": [threading.active_count(), torch.get_num_threads(), torch.get_num_interop_threads()],
    "fork": torch._C._cuda_isInBadFork() if hasattr(torch._C, "_cuda_isInBadFork") else False,
}))
print(json.dumps([random.random(), np.random.rand(), Randomizable.R.rand(), torch.rand(1).item()]))
"""
)

ENDS = """
import os, signal, sys, threading, time
how = sys.argv[1]
print("began", os.getpid())
if how == "exit": sys.exit(3)
if how == "sentence": sys.exit("there is no such file")
if how == "error": raise ValueError("a mask has a label 9")
if how == "killed": os.kill(os.getpid(), signal.SIGKILL)
if how == "asked": os.kill(os.getpid(), signal.SIGTERM)
if how == "at once": os._exit(4)
if how == "thread": threading.Thread(target=lambda: (time.sleep(0.3), print("of a thread"))).start()
if how == "sleep": time.sleep(100)
if how == "memory":
    shared = bytearray(os.urandom(1)) * 120_000_000
    for number in range(2):
        if not os.fork():
            own = bytearray(os.urandom(1)) * 80_000_000
            time.sleep(4)
            os._exit(0)
    for number in range(2):
        os.wait()
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A working folder with programs that ``python -m`` finds there."""
    folder = tmp_path_factory.mktemp("warm")
    (folder / "state.py").write_text(STATE)
    (folder / "ends.py").write_text(ENDS)
    return folder


@pytest.fixture(autouse=True)
def any_program(request, place, monkeypatch):
    """Programs of any name start warm, by a server that imports little where a test does not ask for more."""
    rule = warm_start._is_warm
    monkeypatch.setattr(warm_start, "_is_warm", lambda words, given: rule([*words[:2], "monai.bundle"], given))
    monkeypatch.chdir(place)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    if "imports" not in request.fixturenames:
        monkeypatch.setattr(warm_start, "IMPORTS", ("numpy",))


@pytest.fixture(scope="class")
def imports():
    """For tests that need the server with all of its imports."""
    warm_start._close()
    yield
    warm_start._close()


def warm(log: Path, *words: str, **given):
    with log.open("ab") as file:
        return start_child([sys.executable, "-m", *words], file.fileno(), child_environment(), **given)


class TestWithAllImports:
    @pytest.mark.slow  # imports everything three times
    def test_a_fork_is_in_the_state_of_a_process_of_its_own(self, imports, place, tmp_path):
        found = []
        for kind in (start_child, start_child, PlainChild):
            log = tmp_path / "log"
            with log.open("wb") as file, open(os.devnull) as held:
                words = [sys.executable, "-m", "state", "--a", "b c"]
                child = kind(words, file.fileno(), child_environment() | {GPU_RECORD: "record"}, (held.fileno(),))
            assert child.wait() == 0, log.read_text()
            state, drawn = map(json.loads, log.read_text().splitlines())
            found.append((state, drawn))
        (first, a), (second, b), (plain, c) = found
        for name in plain:
            assert first[name] == plain[name] and second[name] == plain[name], name
        assert first["path"][0] == str(place) and [v for k, v in first["environment"] if k == GPU_RECORD] == ["record"]
        assert all(x != y != z != x for x, y, z in zip(a, b, c, strict=True)), "generators without a seed are alike"

    @pytest.mark.slow
    def test_a_training_has_the_same_bits(self, imports, cohort, tiny, tmp_path):
        root = Path(__file__).resolve().parent.parent
        configs = root / "bundles/pretrain_once/configs"
        nets = []
        for kind, where in ((start_child, "warm"), (PlainChild, "plain")):
            words = [sys.executable, "-m", "monai.bundle", "run", "--bundle_root", str(configs.parent)]
            words += ["--config_file", str([str(configs / "train.json"), tiny["unetr"]]), "--dataset_dir", str(cohort)]
            words += ["--max_epochs", "1", "--output_dir", str(tmp_path / where)]
            with (tmp_path / "log").open("wb") as file:
                child = kind(words, file.fileno(), child_environment())
            assert child.wait() == 0, (tmp_path / "log").read_text()
            nets.append(torch.load(tmp_path / where / "model.pt", weights_only=True))
        warm_net, plain_net = nets
        assert warm_net.keys() == plain_net.keys()
        assert all(torch.equal(warm_net[name], plain_net[name]) for name in plain_net)


@pytest.mark.parametrize(
    ("how", "status", "last"),
    [
        ("return", 0, "began"),
        ("exit", 3, "began"),
        ("sentence", 1, "there is no such file"),
        ("error", 1, "ValueError: a mask has a label 9"),
        ("killed", -signal.SIGKILL, "began"),
        ("asked", -signal.SIGTERM, "began"),
        ("at once", 4, "began"),
        ("thread", 0, "of a thread"),
    ],
)
def test_its_end_is_told(tmp_path, how, status, last):
    child = warm(tmp_path / "log", "ends", how)
    assert isinstance(child, WarmChild) and child.wait() == status and child.wait() == status
    assert (tmp_path / "log").read_text().splitlines()[-1].startswith(last)
    assert child.largest > 10e6


def test_one_that_does_not_end_is_waited_for_as_long_as_asked_and_stopped_by_its_group(tmp_path):
    child = warm(tmp_path / "log", "ends", "sleep")
    assert child.wait(0.2) is None
    os.killpg(child.pid, signal.SIGTERM)
    assert child.wait(30) == -signal.SIGTERM
    assert warm(tmp_path / "log", "ends", "return").wait() == 0


def test_it_holds_the_lock_of_its_run(tmp_path):
    """So that another comparison leaves the folder alone until the child of a killed one has ended."""
    path = tmp_path / "lock"

    def is_locked() -> bool:
        with path.open("w") as other:
            try:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        child = warm(tmp_path / "log", "ends", "sleep", descriptors=(lock.fileno(),))
    assert is_locked()
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert not is_locked()


@pytest.mark.slow  # two processes hold memory for four seconds
def test_its_memory_counts_what_it_shares_with_the_server_once(tmp_path):
    before = warm(tmp_path / "log", "ends", "return")
    before.wait()
    child = warm(tmp_path / "log", "ends", "memory")
    with PeakMemory(child.pid, child.lender) as peak:
        assert child.wait() == 0
    most = before.largest + 120e6 + 2 * 80e6
    assert 0.9 * most < peak.bytes < 1.1 * most


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_server_that_is_killed_takes_its_runs_along_and_the_next_run_has_another(tmp_path):
    child = warm(tmp_path / "log", "ends", "sleep")
    os.kill(child.lender, signal.SIGKILL)
    assert child.wait(60) == -signal.SIGKILL
    wait_until(lambda: not alive(child.pid))
    assert warm(tmp_path / "log", "ends", "return").wait() == 0  # the loss is seen here
    later = warm(tmp_path / "log", "ends", "return")
    assert later.wait() == 0 and isinstance(later, WarmChild) and later.lender != child.lender


PARENT = """
import os, sys, time
from common.child_process import child_environment
from common import warm_start
warm_start._is_warm = lambda *given: True
warm_start.IMPORTS = ("numpy",)
with open("log", "wb") as file:
    child = warm_start.start_child([sys.executable, "-m", "ends", "sleep"], file.fileno(), child_environment())
print(child.lender, child.pid, flush=True)
{then}
"""


@pytest.mark.parametrize("then", ["time.sleep(100)", "sys.exit()"], ids=["killed", "ended"])
def test_nothing_outlives_who_started_it(place, child_path, then):
    """Neither where it is killed, nor where it ends while a run is at work."""
    environment = {**os.environ, "PYTHONPATH": child_path}
    words = [sys.executable, "-c", PARENT.format(then=then)]
    with subprocess.Popen(words, cwd=place, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        server, child = map(int, parent.stdout.readline().split())
        if "sleep" in then:
            assert alive(server) and alive(child)
            parent.kill()
    wait_until(lambda: not alive(server) and not alive(child))


def test_another_environment_or_folder_has_another_server(tmp_path, monkeypatch):
    """What was imported depends on both."""
    first = warm(tmp_path / "log", "ends", "return")
    first.wait()
    (tmp_path / "ends.py").write_text("import os; print('another', os.environ['SOME'])")
    monkeypatch.setenv("SOME", "thing")
    monkeypatch.chdir(tmp_path)
    second = warm(tmp_path / "log", "ends", "return")
    assert second.wait() == 0 and second.lender != first.lender
    assert (tmp_path / "log").read_text().endswith("another thing\n")
    assert not alive(first.lender)


def test_where_the_server_does_not_start_each_command_does_so_by_itself(place, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['numpy'] = None")
    for _ in range(2):
        child = warm(tmp_path / "log", "ends", "return")
        assert isinstance(child, PlainChild) and child.wait() == 0
    assert [one.getMessage() for one in caplog.records] == [
        "The server of warm starts did not start: each run imports MONAI for itself."
    ]


def test_which_commands_start_warm(monkeypatch):
    monkeypatch.undo()
    bundle = [sys.executable, "-m", "monai.bundle", "run"]
    assert warm_start._is_warm(bundle, {})
    assert warm_start._is_warm([sys.executable, "-m", "common.compare.probes"], {})
    several = [sys.executable, "-m", "torch.distributed.run", "--standalone", *bundle[1:]]
    for other in (several, [sys.executable, "-c", "print(1)"], ["/usr/bin/python", *bundle[1:]], [sys.executable]):
        assert not warm_start._is_warm(other, {})
    assert not warm_start._is_warm(bundle, {SWITCH: "0"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not warm_start._is_warm(bundle, {})
    monkeypatch.undo()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not warm_start._is_warm(bundle, {})


def test_what_is_interrupted_before_it_starts_does_not_start(tmp_path, monkeypatch):
    """As in a notebook, which lives on: the run would train for nobody."""
    monkeypatch.setenv("SOME", "other server")
    monkeypatch.setattr(warm_start, "IMPORTS", ("numpy", "slow_import"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "slow_import.py").write_text("import time; time.sleep(100)")
    handler = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(KeyboardInterrupt):
            warm(tmp_path / "log", "ends", "sleep")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    assert warm_start._server is None and (tmp_path / "log").read_text() == ""
    (tmp_path / "slow_import.py").write_text("")
    assert isinstance(child := warm(tmp_path / "log", "ends", "return"), WarmChild) and child.wait() == 0
