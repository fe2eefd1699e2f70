"""Running the child processes of a comparison: one at a time or one a GPU, resumable, each failure with its reason."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import queue
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..checks import REFUSED
from ..json_files import read_json, write_json
from .plan import Plan, Run
from .settings import CompareError, Settings

__all__ = ["execute", "hold_folder", "read_outcome", "run_child"]

PACKAGES = ("monai-transfer-bundles", "monai", "torch", "numpy", "pytorch-ignite")
CHECKPOINTS = ("pretrain.ckpt", "train.ckpt")
PR_SET_PDEATHSIG = 1  # prctl(2)
# Looked up here: between fork and exec nothing may be imported or allocated.
_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


@contextmanager
def hold_folder(settings: Settings) -> Iterator[None]:
    """Keep other comparisons out of the output folder.

    Raises:
        CompareError: another process works in it, or it holds the runs of a comparison with other settings.
    """
    settings.output.mkdir(parents=True, exist_ok=True)
    lock = FileLock(settings.output / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise CompareError(
            f"Another comparison is running in {settings.output}: wait for it, or give another --output."
        ) from None
    try:
        record = settings.output / "settings.json"
        if record.is_file():
            before = read_json(record)
            now = json.loads(json.dumps(settings.fixed()))
            changed = [name for name in {**now, **before} if before.get(name) != now.get(name)]
            if changed:
                was = ", ".join(f"{name} {before.get(name)!r} (now {now.get(name)!r})" for name in changed)
                raise CompareError(
                    f"{settings.output} holds another comparison, with {was}: give another --output. Arms, numbers of "
                    "labels and seeds may be added to a folder, all else is the same for its runs."
                )
        yield
    finally:
        lock.release()


def execute(plan: Plan, say: Callable[[str], None] = print) -> None:
    """Run what is not done yet. A failure is recorded and does not stop the others, except those that need it.

    From here on the output folder is this comparison's.
    """
    write_json(plan.settings.output / "settings.json", plan.settings.fixed(), default=str)
    devices: queue.Queue[str] = queue.Queue()
    for device in plan.settings.devices:
        devices.put(device)
    waiting = list(plan.runs)
    total, started = len(waiting), 0
    condition = threading.Condition()
    unfinished: set[int] = set()  # of the runs handed out
    stopping = threading.Event()
    crash: list[BaseException] = []

    def work(run: Run, number: int, device: str) -> None:
        try:
            _do(run, f"[{number}/{total}] {run}", device, plan.settings, say, stopping)
        except BaseException as error:  # of this program, not of the child
            crash.append(error)
        finally:
            devices.put(device)
            with condition:
                unfinished.discard(id(run))
                condition.notify_all()

    threads: list[threading.Thread] = []
    try:
        while waiting and not crash:
            device = devices.get()
            with condition:
                # A run waits for those before it that write into its folder or write what it reads.
                ready = next((run for run in waiting if not _blocked(run, plan.runs, waiting, unfinished)), None)
                if ready is None:
                    devices.put(device)
                    condition.wait(timeout=1.0)
                    continue
                waiting.remove(ready)
                unfinished.add(id(ready))
            started += 1
            thread = threading.Thread(target=work, args=(ready, started, device), daemon=True)
            thread.start()
            threads.append(thread)
            if len(plan.settings.devices) == 1:
                while thread.is_alive():  # not a bare join, which would not see Ctrl-C
                    thread.join(timeout=0.2)
        for thread in threads:
            while thread.is_alive():
                thread.join(timeout=0.2)
    except BaseException:
        stopping.set()
        _stop_children()
        for thread in threads:  # which say so
            thread.join(timeout=5.0)
        raise
    if crash:
        raise crash[0]


def _blocked(run: Run, runs: tuple[Run, ...], waiting: list[Run], unfinished: set[int]) -> bool:
    for other in runs:
        if other is run:
            return False
        if any(other is one for one in waiting) or id(other) in unfinished:
            written = other.folder
            if written == run.folder or any(written in path.parents for path in (*run.inputs, *run.needs)):
                return True
    return False


def _do(
    run: Run, title: str, device: str, settings: Settings, say: Callable[[str], None], stopping: threading.Event
) -> None:
    before = read_outcome(run)
    unfinished = [path.parent for path in run.needs if read_json(path, {}).get("status") != "done"]
    missing = [path for path in run.inputs if not path.is_file()]
    if unfinished or missing:
        reason = "a run that it needs is not done: " if unfinished else "there is no "
        reason += str(unfinished[0].relative_to(settings.output) if unfinished else missing[0])
        # with the digest of what is in the folder, which tells the next call whether it may go on with it
        _write_outcome(run, {**before, "status": "skipped", "reason": reason})
        say(f"{title}: skipped, {reason}")
        return
    digest = run.digest()
    if before.get("digest") == digest and before.get("status") == "done":
        say(f"{title}: done before ({before['seconds']:.0f} s)")
        return
    if before and before.get("digest") not in (None, digest) and run.stage in ("pretrain", "tune", "train"):
        aside = _aside(run.folder)
        run.folder.rename(aside)
        say(f"{title}: its config or data changed; what was there is now in {aside.name}")
    run.folder.mkdir(parents=True, exist_ok=True)
    outcome: dict[str, Any] = {"digest": digest, "status": "started", "attempts": _attempts(run, before, digest)}
    outcome |= {"machine": machine(), "packages": versions()}
    _write_outcome(run, outcome)
    say(f"{title} ...")
    ended = run_child(run, settings, device)
    if ended["status"] != "done" and stopping.is_set():  # its outcome stays "started", as that of a killed one
        say(f"{title}: interrupted")
        return
    outcome |= ended
    outcome["seconds"] += outcome["attempts"][-1]["seconds_before"]
    if outcome["status"] == "done":
        scrap = [] if settings.keep_checkpoints else [*CHECKPOINTS, *["model.pt"] * (run.stage == "tune")]
        for name in scrap:
            (run.folder / name).unlink(missing_ok=True)
    _write_outcome(run, outcome)
    ending = f"{outcome['seconds']:.0f} s" if outcome["status"] == "done" else f"FAILED, {outcome['reason']}"
    say(f"{title}: {ending}")


def _attempts(run: Run, before: Mapping[str, Any], digest: str) -> list[dict[str, float]]:
    """When this run was started, each time, and how long it had worked before.

    An interrupted training goes on where it was, so its time is the sum; the end of an attempt that was killed is when
    its log was last written.
    """
    attempts: list[dict[str, float]] = []
    log = run.folder / f"{run.key}.log"
    if before.get("digest") == digest and before.get("status") != "done" and log.is_file():
        attempts = list(before.get("attempts", []))
    worked = 0.0
    if attempts:
        worked = attempts[-1]["seconds_before"] + max(0.0, log.stat().st_mtime - attempts[-1]["started"])
    return [*attempts, {"started": time.time(), "seconds_before": worked}]


def _aside(folder: Path) -> Path:
    number = 1
    while (aside := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    return aside


def run_child(run: Run, settings: Settings, device: str = "") -> dict[str, Any]:
    """Run one command, with its text, its resolved config and its output in files beside the results.

    Returns:
        ``status`` (``done`` or ``failed``), ``seconds``, ``peak_memory_mb`` of the largest of its processes, ``steps``,
        ``command``, and for a failed run its ``reason``.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    command = run.command(settings)
    (run.folder / f"{run.key}.command.txt").write_text(shlex.join(command) + "\n", encoding="utf-8")
    write_json(run.folder / f"{run.key}.config.json", run.config(), default=str)
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "PYTHONUNBUFFERED": "1"}
    # The child finds the `common` that this process runs, whatever the working folder is.
    root = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    if device:
        environment["CUDA_VISIBLE_DEVICES"] = device
    log = run.folder / f"{run.key}.log"
    started = time.time()
    with log.open("ab") as file:
        file.write(f"\n$ {shlex.join(command)}\n".encode())
        file.flush()
        begin = file.tell()
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            preexec_fn=_die_with_parent if _prctl else None,
        )
        _children.add(child.pid)
        try:
            _, status, usage = os.wait4(child.pid, 0)
        except BaseException:
            _stop(child.pid)
            raise
        finally:
            _children.discard(child.pid)
        child.returncode = os.waitstatus_to_exitcode(status)
    unit = 1 if sys.platform == "darwin" else 1024
    outcome: dict[str, Any] = {
        "status": "done" if child.returncode == 0 else "failed",
        "seconds": time.time() - started,
        "peak_memory_mb": usage.ru_maxrss * unit / 2**20,
        "steps": run.steps,
        "command": shlex.join(command),
    }
    if child.returncode:
        outcome["reason"] = failure_reason(log, begin, child.returncode)
    return outcome


_children: set[int] = set()


def _stop_children() -> None:
    """End the children of the other threads, which wait for them and take note; what does not end is killed."""
    for number, patience in ((signal.SIGTERM, 30.0), (signal.SIGKILL, 5.0)):
        for pid in list(_children):
            with suppress(ProcessLookupError):
                os.killpg(pid, number)
        end = time.time() + patience
        while _children and time.time() < end:
            time.sleep(0.1)


def _stop(pid: int) -> None:
    """End a child of this thread."""
    for number, patience in ((signal.SIGTERM, 30.0), (signal.SIGKILL, 5.0)):
        with suppress(ProcessLookupError):
            os.killpg(pid, number)
        end = time.time() + patience
        with suppress(ChildProcessError):
            while time.time() < end:
                if os.waitpid(pid, os.WNOHANG)[0]:
                    return
                time.sleep(0.1)


def _die_with_parent() -> None:
    """End this child when the comparison is killed, so that the next call does not meet it at work (Linux)."""
    if _prctl is not None:
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def failure_reason(log: Path, begin: int, code: int) -> str:
    """One sentence on why a child failed, from the end of its output."""
    if code == -signal.SIGKILL:
        return f"killed by the system, most likely for want of memory (see {log.name})"
    if code < 0:
        return f"ended by signal {signal.Signals(-code).name} (see {log.name})"
    with log.open("rb") as file:
        file.seek(begin)
        text = file.read().decode("utf-8", "replace")
    if re.search(r"OutOfMemoryError|CUDA out of memory|can't allocate memory|std::bad_alloc", text):
        return f"out of memory (see {log.name}); lower batch_size, or the size of the network"
    if "ChildFailedError" in text:  # torchrun's own summary comes last and says nothing of the cause
        found = re.search(rf"^\[rank\d+\]: {REFUSED} .*\n+\[rank\d+\]: (.*)$", text, re.MULTILINE)
        found = found or re.search(r"^\[rank\d+\]: (\w*(?:Error|Exception|Exit): .*)$", text, re.MULTILINE)
        if found:
            return f"{found[1]} (see {log.name})"
    # The bundles' first step sees to it that the output ends with what went wrong, after an empty line.
    paragraphs = [part.strip() for part in text.strip().split("\n\n") if part.strip()]
    last = paragraphs[-1].splitlines() if paragraphs else []
    if len(last) > 1 and (last[0].startswith("Traceback") or any("  File " in line for line in last)):
        last = last[-1:]
    reason = " ".join(line.strip() for line in last[-6:])
    return f"{reason or f'exit status {code}'} (see {log.name})"


def read_outcome(run: Run) -> dict[str, Any]:
    """What became of a run; empty where it was never started."""
    return read_json(run.outcome, {})


def _write_outcome(run: Run, outcome: Mapping[str, Any]) -> None:
    run.folder.mkdir(parents=True, exist_ok=True)
    write_json(run.outcome, outcome, default=str)


def versions() -> dict[str, str]:
    """Versions of the packages that results depend on."""
    found = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def machine() -> str:
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name(0)}, {platform.system()}"
    return f"CPU, {os.cpu_count()} cores, {platform.machine()}, {platform.system()}"
