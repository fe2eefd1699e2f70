"""Run a comparison's runs in order, on any launcher, and together with other processes."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..files import held_folder
from ..json_files import read_json, write_json
from .child import BUSY, HAS_LOCKS, read_outcome
from .launchers import make_launcher
from .plan import Plan
from .run import Run
from .settings import CompareError, Settings
from .time_left import TimeLeft

__all__ = ["execute", "hold_folder", "take_models"]


@contextmanager
def hold_folder(settings: Settings) -> Iterator[None]:
    """Keep other processes from writing the shared files of the output folder: settings, tables and report.

    Raises:
        CompareError: it holds the runs of a comparison with other settings, or this system lacks locks that a child can
            inherit.
    """
    if not HAS_LOCKS:
        raise CompareError("common.compare needs the file locks of Linux or macOS; on Windows run it in WSL.")
    with held_folder(settings.output):
        changed = _changed(settings, settings.output)
        if changed:
            was = ", ".join(f"{name} {before!r} (now {now!r})" for name, (before, now) in changed.items())
            raise CompareError(
                f"{settings.output} holds another comparison, with {was}: give another --output. You can add "
                "arms, numbers of labels and seeds to a folder; everything else must be the same for its runs."
            )
        yield


def _changed(settings: Settings, folder: Path) -> dict[str, tuple[Any, Any]] | None:
    """What the comparison in a folder has and these settings have, where they differ; None if it holds none."""
    before = read_json(folder / "settings.json", {})
    now = json.loads(json.dumps(settings.fixed()))
    names = [name for name in {**now, **before} if before.get(name) != now.get(name)]
    return {name: (before.get(name), now.get(name)) for name in names} if before else None


def take_models(settings: Settings) -> None:
    """Copy the trainings of ``models_from`` into an output folder that is not a comparison's yet.

    Raises:
        CompareError: that folder holds no comparison, or one that differs in more than what evaluation alone has.
    """
    source = settings.models_from
    if source is None:
        return
    changed = _changed(settings, source)
    if changed is None or changed.keys() - {"evaluate_override"}:
        names = ", ".join(name for name in changed or () if name != "evaluate_override")
        why = f"differs in {names}" if names else "holds no comparison"
        raise CompareError(
            f"--models_from {source} {why}: give the folder of a comparison that only tests other scans."
        )
    if source.resolve() == settings.output.resolve():
        raise CompareError(f"--models_from {source} is --output, too: give another --output.")
    with hold_folder(settings):
        if (settings.output / "settings.json").is_file():
            return  # copied before
        for name in ("pretrain", "tune", "runs"):
            if (source / name).is_dir():
                ours = shutil.ignore_patterns("evaluate.*", "eval", "infer.*", "predictions", "*.lock")
                shutil.copytree(source / name, settings.output / name, ignore=ours, dirs_exist_ok=True)
        write_json(settings.output / "settings.json", settings.fixed(), default=str)


def execute(plan: Plan, say: Callable[[str], None] = print, whole: Plan | None = None) -> None:
    """Run everything that is not done yet. A failure is recorded and stops only the runs that need its result.

    From here on the output folder belongs to this comparison. Other processes, also on other machines that share it,
    may work on it at the same time: one of them does each run, and all finish together.

    Args:
        whole: plan of the whole comparison if these runs are a part of it, for the time left.
    """
    settings = plan.settings
    with hold_folder(settings):
        write_json(settings.output / "settings.json", settings.fixed(), default=str)
    before = {id(run): read_outcome(run) for run in plan.runs}
    waiting, total, started = list(plan.runs), len(plan.runs), 0
    working: dict[Any, Run] = {}  # job -> its run
    titles: dict[int, str] = {}
    elsewhere: dict[int, float] = {}  # runs that another process works on, and when to look again
    launcher = make_launcher(settings)
    clock = TimeLeft(whole or plan, plan.runs, launcher.slots)
    waits_for = _waits_for(plan.runs)  # once: the loop below looks often

    def left(run: Run) -> str:
        return "" if settings.launcher else clock.begin(run)  # how long jobs of a cluster wait is unknown

    try:
        while waiting or working:
            for job in [job for job in working if job.done()]:
                run = working.pop(job)
                if launcher.ended(job, say, titles[id(run)]) != BUSY:
                    clock.end(run)
                    continue
                if id(run) not in elsewhere:
                    say(f"{titles[id(run)]}: another process works on it")
                elsewhere[id(run)] = time.time() + 1.0
                waiting = [one for one in plan.runs if one is run or any(one is other for other in waiting)]
            unfinished = {id(run) for run in (*waiting, *working.values())}
            ready = [run for run in waiting if unfinished.isdisjoint(waits_for[id(run)])]
            ready = [run for run in ready if elsewhere.get(id(run), 0.0) < time.time()]
            batch = ready[: launcher.slots - len(working)]
            for run in batch:
                started += id(run) not in titles
                titles.setdefault(id(run), f"[{started}/{total}] {run}")
                waiting = [one for one in waiting if one is not run]
            works = [(run, titles[id(run)], settings, before[id(run)], left(run)) for run in batch]
            working |= dict(zip(launcher.start(works, say), batch, strict=True))
            if waiting or working:
                launcher.wait(working)
    except BaseException:
        launcher.stop()
        raise


def _waits_for(runs: Sequence[Run]) -> dict[int, set[int]]:
    """For each run, by its ``id``, those before it that write into its folder or write what it reads."""
    found: dict[int, set[int]] = {}
    written: dict[Path, set[int]] = {}
    for run in runs:
        places = {run.folder, *(parent for path in (*run.inputs, *run.needs) for parent in path.parents)}
        found[id(run)] = set().union(*(written.get(place, ()) for place in places))
        written.setdefault(run.folder, set()).add(id(run))
    return found
