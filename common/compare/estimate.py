"""What a comparison will take in time, memory and disk, from a short probe on this machine."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .collect import curve_rows
from .execute import read_outcome, run_child, write_json
from .plan import Plan, Run
from .settings import CompareError

__all__ = ["Cost", "equal_time", "estimate", "probe"]

STEPS = 4
"""Steps of a probe: the first is left out, it warms up."""


@dataclass(frozen=True)
class Cost:
    """What one stage of one arm costs here, in seconds, bytes and MiB.

    Args:
        start: from the start of the process to its first step (or, in an evaluation, volume), without loading data.
        step: an optimiser step, or a volume in an evaluation.
        peak_mb: memory of the process with the probe's few items.
        disk: bytes that a run leaves.
    """

    start: float
    step: float
    peak_mb: float
    disk: int


def estimate(plan: Plan) -> str:
    """The list of runs and what they will take, as text; runs a few steps of each kind of run first.

    Raises:
        CompareError: a probe failed; the message has its reason, which the comparison itself would have met.
    """
    item_seconds, item_bytes = _item(plan)
    validation = len(plan.train.get("data")["validation"])
    items = {"pretrain": 0, "evaluate": len(plan.test)}
    costs: dict[tuple[str, str], Cost] = {}
    lines, total, peak, disk = [], 0.0, 0.0, 0
    for run in plan.runs:
        if read_outcome(run).get("status") == "done":
            lines.append(f"  {run}: done")
            continue
        if run.stage in ("infer", "probe"):
            lines.append(f"  {run}: a small one, not estimated")
            continue
        kind = (run.stage, run.arm if run.stage == "pretrain" else "")
        if kind not in costs:
            costs[kind] = probe(run, plan)
        cost = costs[kind]
        if ("evaluate", "") not in costs:
            costs["evaluate", ""] = probe(_evaluation(plan), plan, costs.get(("train", "")))
        evaluation = costs["evaluate", ""]
        loaded = run.labels or items.get(run.stage) or len(plan.train.get("data")["training"])
        if run.stage == "evaluate":
            seconds = cost.start + len(plan.test) * (cost.step + item_seconds)
        else:
            rounds = plan.settings.validations if run.stage == "train" else 0
            seconds = cost.start + run.steps * cost.step + (loaded + validation) * item_seconds
            seconds += rounds * validation * evaluation.step
        memory = cost.peak_mb + (loaded + validation) * item_bytes / 2**20
        total, peak, disk = total + seconds, max(peak, memory), disk + cost.disk
        lines.append(f"  {run}: {run.steps or len(plan.test)} {'steps' if run.steps else 'volumes'}, {_time(seconds)}")
    if plan.settings.equal == "time":
        lines.append("  and in arms that pre-trained less, as many steps more as their time allows")
    parallel = len(plan.settings.devices)
    counts = Counter(run.stage for run in plan.runs)
    head = ", ".join(f"{count} x {stage}" for stage, count in counts.items())
    return "\n".join(
        [
            f"{len(plan.runs)} runs: {head}",
            *lines,
            "",
            f"About {_time(total / parallel)} in all{f' on {parallel} devices' if parallel > 1 else ''}, "
            f"{peak / 1024:.1f} GiB of memory at most a run, {disk / 2**30:.2f} GiB on disk.",
            f"From {STEPS} steps of each kind on this machine just now; expect the real thing within a factor of two.",
        ]
    )


def probe(run: Run, plan: Plan, training: Cost | None = None) -> Cost:
    """Run a few steps of a run (of an evaluation: one volume) in a folder that is deleted afterwards."""
    place = Path(tempfile.mkdtemp(prefix=".probe-", dir=plan.settings.output))
    try:
        override = {**run.override, "output_dir": str(place)}
        override.pop("pretrained_encoder", None)
        if run.stage == "evaluate":
            model = place / "model.pt"
            torch.save(plan.evaluate.get("network_def").state_dict(), model)
            override["validate#dataset#data"] = f"$@data['{plan.evaluate.get('evaluated_list', 'test')}'][:1]"
        else:
            # an epoch of a few steps over few items: what is loaded is counted separately
            override |= {"max_epochs": 1, "train#trainer#epoch_length": STEPS, "resume": False}
            override["train#dataset#data"] = "$@data['training'][:2]"
            override["validate#dataset#data"] = "$@data['validation'][:1]"
        short = replace(run, override=override, folder=place, steps=STEPS, epochs=1, inputs=(), needs=())
        began = time.time()
        outcome = run_child(short, plan.settings, plan.settings.devices[0])
        if outcome["status"] != "done":
            raise CompareError(f"{run} would fail: {outcome['reason'].partition(' (see')[0]}")
        disk = sum(path.stat().st_size for path in place.rglob("*") if path.is_file() and path.suffix != ".ckpt")
        peak = outcome["peak_memory_mb"]
        if run.stage == "evaluate":
            start = min(training.start if training else 0.0, 0.9 * outcome["seconds"])
            return Cost(start, outcome["seconds"] - start, peak, disk)
        times = [row["seconds"] for row in curve_rows(short, plan) if row["tag"] == "train_loss"]
        step = (times[STEPS - 1] - times[0]) / (STEPS - 1)
        first = _first_event(place) - began
        return Cost(max(0.0, first - step), step, peak, disk)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def equal_time(plan: Plan) -> dict[str, int]:
    """Steps that each arm fine-tunes longer, so that all take the seconds of the arm that pre-trained longest.

    Pre-training has to be done. What was found is kept in ``equal_time.json``, so that a second call lays out the same
    runs; an encoder file that somebody else pre-trained counts as nothing.
    """
    spent: dict[str, float] = {arm.name: 0.0 for arm in plan.settings.arms}
    for run in plan.runs:
        if run.stage == "pretrain":
            spent[run.arm] = max(spent[run.arm], read_outcome(run).get("seconds", 0.0))
    record = plan.settings.output / "equal_time.json"
    if record.is_file():
        before = json.loads(record.read_text(encoding="utf-8"))
        if before["pretraining_seconds"] == spent:
            return before["extra_steps"]
    step = probe(next(run for run in plan.runs if run.stage == "train"), plan).step
    extra = {arm: round((max(spent.values()) - seconds) / step) for arm, seconds in spent.items()}
    write_json(record, {"pretraining_seconds": spent, "step_seconds": step, "extra_steps": extra})
    return extra


def _evaluation(plan: Plan) -> Run:
    return next(run for run in plan.runs if run.stage == "evaluate")


def _first_event(folder: Path) -> float:
    """When the first step ended, in seconds since the epoch."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    times = []
    for file in folder.glob("tensorboard/events.*"):
        events = EventAccumulator(str(file))
        events.Reload()
        times += [events.Scalars("train_loss")[0].wall_time] if "train_loss" in events.Tags()["scalars"] else []
    return min(times)


def _item(plan: Plan) -> tuple[float, int]:
    """Seconds to load one item through the deterministic transforms, and bytes that it takes in the cache."""
    transforms: Any = plan.train.get("validate#preprocessing")
    began = time.time()
    item = transforms(dict(plan.train.get("data")["training"][0]))
    values = item.values() if isinstance(item, dict) else []
    size = sum(value.numel() * value.element_size() for value in values if isinstance(value, torch.Tensor))
    return time.time() - began, size if plan.train.get("cache_rate", 1.0) else 0


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
