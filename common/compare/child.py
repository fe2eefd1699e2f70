"""One run of a comparison as a child process: locked, resumable, its failure with a reason."""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import platform
import shlex
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows, which `hold_folder` refuses
    fcntl = None  # type: ignore[assignment]

from ..child_process import Child, child_environment, failure_reason
from ..json_files import read_json, write_json
from ..memory import RUNS_AT_ONCE
from ..peak_memory import GPU_RECORD, PeakMemory, gpu_peak
from ..warm_start import start_child
from .run import Run
from .settings import CompareError, Settings

__all__ = ["BUSY", "do_run", "machine", "read_outcome", "run_child", "stop_children", "versions", "worked_before"]

BUSY = "busy"
HAS_LOCKS = fcntl is not None

PACKAGES = ("monai-transfer-bundles", "monai", "torch", "numpy", "pytorch-ignite")
CHECKPOINTS = ("pretrain.ckpt", "train.ckpt")


@contextmanager
def _hold(run: Run, settings: Settings) -> Iterator[int | None]:
    """Lock the folder of a run: a descriptor, or None where another process has it.

    The kernel ends the lock with the last process that has the descriptor. The child of the run is given it, so that a
    child that outlives a killed comparison keeps its folder until it has ended, too.
    """
    path = settings.output / ".locks" / "+".join(run.folder.relative_to(settings.output).parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise CompareError(
                    f"{path}: this file system has no locks ({error}); give another --output."
                ) from error
            yield None
            return
        yield descriptor
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # whatever else the child left with the descriptor
    finally:
        os.close(descriptor)


def do_run(
    run: Run,
    title: str,
    settings: Settings,
    seen: Mapping[str, Any],
    left: str = "",
    say: Callable[[str], None] = print,
    device: str = "",
    stopping: threading.Event | None = None,
) -> str | None:
    """Do one run where this process is, if it is still to be done.

    Args:
        seen: its outcome when this comparison began; what failed in another process since then is not tried again.
        left: the time left of the comparison, in words.

    Returns:
        ``BUSY`` where another process works in its folder.
    """
    with _hold(run, settings) as lock:
        if lock is None:
            return BUSY
        _do(run, title, settings, seen, left, say, device, stopping, lock)
    return None


def _do(
    run: Run,
    title: str,
    settings: Settings,
    seen: Mapping[str, Any],
    left: str,
    say: Callable[[str], None],
    device: str,
    stopping: threading.Event | None,
    lock: int,
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
    made = run.made(before, digest)
    if made and before.get("status") == "done":
        notes = [f"{before['seconds']:.0f} s"]
        if before.get("packages", {}).get("common") not in (None, versions()["common"]):
            notes.append("by other code")
        if run.scans and "scans" not in before:
            notes.append("which did not note the content of its scans")
        say(f"{title}: done before ({', '.join(notes)})")
        _tidy_trials(run, settings)
        return
    if made and before.get("status") == "failed" and before != seen:
        say(f"{title}: FAILED in another process, {before['reason']}")
        return
    if before.get("digest") is not None and not made and run.stage in ("pretrain", "tune", "train"):
        aside = _aside(run.folder)
        run.folder.rename(aside)
        say(f"{title}: its config or data changed; what was there is now in {aside.name}")
    if _take_trial(run, digest, settings):
        _tidy_trials(run, settings)
        say(f"{title}: its trial {run.trial} is the same training")
        return
    run.folder.mkdir(parents=True, exist_ok=True)
    attempts = _attempts(run, before if made else {})
    outcome: dict[str, Any] = {"digest": digest, "scans": run.scans, "status": "started", "attempts": attempts}
    outcome |= {"machine": machine(), "packages": versions()}
    _write_outcome(run, outcome)
    say(f"{title} ... {left}".rstrip())
    ended = run_child(run, settings, device, (lock,))
    if ended["status"] != "done" and stopping and stopping.is_set():
        # its outcome stays "started", as that of a killed one
        say(f"{title}: interrupted")
        return
    outcome |= ended
    outcome["seconds"] += outcome["attempts"][-1]["seconds_before"]
    if outcome["status"] == "done":
        for name in () if settings.keep_checkpoints else CHECKPOINTS:
            (run.folder / name).unlink(missing_ok=True)
    _write_outcome(run, outcome)
    if outcome["status"] == "done":
        _tidy_trials(run, settings)
    ending = f"{outcome['seconds']:.0f} s" if outcome["status"] == "done" else f"FAILED, {outcome['reason']}"
    say(f"{title}: {ending}")


def _take_trial(run: Run, digest: str, settings: Settings) -> bool:
    """Make a training of the trial that has the chosen values and the same seed, if it is still whole.

    The folder appears with all of its files: a run that was killed while it copied them begins again.
    """
    place = run.folder.with_name(f"{run.folder.name}.part")
    if not run.folder.exists() and run.made(read_json(place / "train.json", {}), digest):
        place.rename(run.folder)  # killed just before this
        return True
    if run.trial is None or not run.is_copied or any((run.folder / name).is_file() for name in CHECKPOINTS):
        return False
    source = run.tried[run.trial]
    outcome = read_json(source / "tune.json", {})
    if outcome.get("status") != "done" or not run.made(outcome, run.digest("tune")):
        return False
    shutil.rmtree(place, ignore_errors=True)
    own = shutil.ignore_patterns("tune.json", "tune.command.txt", "tune.config.json")
    shutil.copytree(source, place, ignore=own)
    (place / "tune.log").replace(place / "train.log")
    _write_inputs(run, place, settings)
    command = shlex.join(run.command(settings))
    write_json(place / "train.json", {**outcome, "command": command, "digest": digest, "trial": run.trial}, default=str)
    for path in run.folder.iterdir() if run.folder.is_dir() else ():
        if not (place / path.name).exists():
            (shutil.copytree if path.is_dir() else shutil.copy2)(path, place / path.name)
    shutil.rmtree(run.folder, ignore_errors=True)
    place.rename(run.folder)
    return True


def _tidy_trials(run: Run, settings: Settings) -> None:
    """Delete the networks of a training's trials, which nothing reads once it is done."""
    for folder in () if settings.keep_checkpoints else run.tried:
        (folder / "model.pt").unlink(missing_ok=True)


def _attempts(run: Run, before: Mapping[str, Any]) -> list[dict[str, float]]:
    """When this run was started, each time, and how long it had worked before.

    An interrupted training goes on where it was, so its time is the sum; the end of an attempt that was killed is when
    its log was last written.
    """
    attempts = _unfinished_attempts(run, before)
    return [*attempts, {"started": time.time(), "seconds_before": _worked(run, attempts)}]


def worked_before(run: Run, outcome: Mapping[str, Any]) -> float:
    """Seconds of a training that was interrupted, which it need not work again; 0 for any other run."""
    return _worked(run, _unfinished_attempts(run, outcome)) if run.steps else 0.0


def _unfinished_attempts(run: Run, outcome: Mapping[str, Any]) -> list[dict[str, float]]:
    if outcome.get("status") == "done" or not (run.folder / f"{run.key}.log").is_file():
        return []
    return list(outcome.get("attempts", []))


def _worked(run: Run, attempts: Sequence[Mapping[str, float]]) -> float:
    if not attempts:
        return 0.0
    ended = (run.folder / f"{run.key}.log").stat().st_mtime
    return attempts[-1]["seconds_before"] + max(0.0, ended - attempts[-1]["started"])


def _aside(folder: Path) -> Path:
    number = 1
    while (aside := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    return aside


def run_child(run: Run, settings: Settings, device: str = "", descriptors: Sequence[int] = ()) -> dict[str, Any]:
    """Run one command, with its text, its resolved config and its output in files beside the results.

    Returns:
        ``status`` (``done`` or ``failed``), ``seconds``, ``peak_memory_mb`` of all of its processes, ``peak_gpu_mb``
        where they had a GPU, ``steps``, ``command``, and for a failed run its ``reason``.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    command = run.command(settings)
    _write_inputs(run, run.folder, settings)
    gpu_record = run.folder / f".{run.key}.gpu"
    environment = child_environment() | {GPU_RECORD: str(gpu_record), RUNS_AT_ONCE: str(len(settings.devices))}
    if device:
        environment["CUDA_VISIBLE_DEVICES"] = device
    log = run.folder / f"{run.key}.log"
    started = time.time()
    with log.open("ab") as file:
        file.write(f"\n$ {shlex.join(command)}\n".encode())
        file.flush()
        begin = file.tell()
        child = start_child(command, file.fileno(), environment, descriptors)
        _children.add(child.pid)
        try:
            with PeakMemory(child.pid, child.lender) as peak:
                code = child.wait()
        except BaseException:
            _stop(child)
            raise
        finally:
            _children.discard(child.pid)
    on_gpu = gpu_peak(gpu_record)
    outcome: dict[str, Any] = {
        "status": "done" if code == 0 else "failed",
        "seconds": time.time() - started,
        "peak_memory_mb": max(child.largest, peak.bytes) / 2**20,
        **({} if on_gpu is None else {"peak_gpu_mb": on_gpu / 2**20}),
        "steps": run.steps,
        "command": shlex.join(command),
    }
    if code:
        outcome["reason"] = failure_reason(log, begin, code)
    return outcome


def _write_inputs(run: Run, place: Path, settings: Settings) -> None:
    command = shlex.join(run.command(settings))
    (place / f"{run.key}.command.txt").write_text(f"{command}\n", encoding="utf-8")
    write_json(place / f"{run.key}.config.json", run.config(), default=str)


_children: set[int] = set()


def stop_children() -> None:
    """End the children of the other threads, which wait for them and take note; what does not end is killed."""
    for number, patience in ((signal.SIGTERM, 30.0), (signal.SIGKILL, 5.0)):
        for pid in list(_children):
            with suppress(ProcessLookupError):
                os.killpg(pid, number)
        end = time.time() + patience
        while _children and time.time() < end:
            time.sleep(0.1)


def _stop(child: Child) -> None:
    """End a child of this thread."""
    for number, patience in ((signal.SIGTERM, 30.0), (signal.SIGKILL, 5.0)):
        with suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        if child.wait(patience) is not None:
            return


def read_outcome(run: Run) -> dict[str, Any]:
    """What became of a run; empty where it was never started."""
    return read_json(run.outcome, {})


def _write_outcome(run: Run, outcome: Mapping[str, Any]) -> None:
    run.folder.mkdir(parents=True, exist_ok=True)
    write_json(run.outcome, outcome, default=str)


def versions() -> dict[str, str]:
    """Versions of the packages that results depend on, and the content of this one."""
    found = {"common": _code()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


@functools.cache
def _code() -> str:
    """The start of a SHA-256 of all code and data of ``common``."""
    root, digest = Path(__file__).resolve().parents[1], hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if path.suffix in (".py", ".json")):
        digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def machine() -> str:
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name(0)}, {platform.system()}"
    return f"CPU, {os.cpu_count()} cores, {platform.machine()}, {platform.system()}"
