"""Estimate time, memory and disk of a comparison, from a short dry run on this machine."""

from __future__ import annotations

import math
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..durations import format_duration
from ..files import made_folder
from ..json_files import read_json, write_json
from .bundle_config import validated_items
from .child import read_outcome, run_child
from .collect import curve_rows, tested_subjects
from .plan import Plan
from .run import Run
from .settings import CompareError
from .statistics import ALPHA, POWER, Spread, detectable, variances
from .tables import Tables, plural

__all__ = ["Cost", "dry_run", "equal_time", "estimate"]

STEPS = 4
"""Steps of a dry run; the first is a warm-up and is not counted."""
ASSUMED = Spread(seeds=0.01**2, subjects=0.03**2, residual=0.02**2)
"""Assumed deviations of the difference of two arms in Dice, before anything is measured."""


@dataclass(frozen=True)
class Cost:
    """Cost of one stage of one arm here, in seconds, bytes and MiB.

    Args:
        start: from the start of the process to its first step (or, in an evaluation, volume), without loading data.
        step: an optimiser step, or a volume in an evaluation.
        peak_mb: memory of its processes with the dry run's few items.
        disk: bytes that a run leaves.
    """

    start: float
    step: float
    peak_mb: float
    disk: int


def estimate(plan: Plan) -> str:
    """List the runs and their costs as text, after a few steps of each kind of run.

    Raises:
        CompareError: a dry run failed; the message has the reason, which would also stop the comparison.
    """
    item_seconds, item_bytes = _item(plan)
    validation = len(validated_items(plan.train))
    costs: dict[tuple, Cost] = {}

    def cost_of(run: Run, training: Cost | None = None) -> Cost:
        kind = plan.kind(run)
        if kind not in costs:
            costs[kind] = dry_run(run, plan, training)
        return costs[kind]

    lines, total, peak, disk = [], 0.0, 0.0, 0
    for run in plan.runs:
        if _is_done(run):
            lines.append(f"  {run}: done")
            continue
        if run.stage in ("infer", "probe"):
            lines.append(f"  {run}: a small one, not estimated")
            continue
        if run.is_copied:
            lines.append(f"  {run}: is one of its trials")
            continue
        training = cost_of(run if run.stage != "evaluate" else _of_stage(plan, "train", run.arm))
        evaluation = cost_of(_of_stage(plan, "evaluate", run.arm), training)
        if run.stage == "evaluate":
            cost, loaded = evaluation, math.ceil(len(plan.test) / (plan.settings.folds or 1))
            seconds = cost.start + loaded * (cost.step + item_seconds)
        else:
            cost, loaded = training, run.items + validation
            rounds = 0 if run.stage == "pretrain" else plan.settings.validations
            seconds = cost.start + run.steps * cost.step + loaded * item_seconds
            seconds += rounds * validation * evaluation.step
        memory = cost.peak_mb + loaded * item_bytes / 2**20
        total, peak, disk = total + seconds, max(peak, memory), disk + cost.disk
        lines.append(
            f"  {run}: {run.steps or loaded} {'steps' if run.steps else 'volumes'}, {format_duration(seconds)}"
        )
    if plan.settings.equal == "time":
        lines.append("  and in arms that pre-trained less, as many more steps as their time allows")
    parallel = len(plan.settings.devices)
    counts = Counter(run.stage for run in plan.runs)
    head = ", ".join(f"{count} x {stage}" for stage, count in counts.items())
    return "\n".join(
        [
            f"{len(plan.runs)} runs: {head}",
            *lines,
            "",
            f"About {format_duration(total / parallel)} in all{f' on {parallel} devices' if parallel > 1 else ''}, "
            f"{peak / 1024:.1f} GiB of memory at most per run, {disk / 2**30:.2f} GiB on disk.",
            f"Based on {STEPS} steps of each kind on this machine just now; expect the real values within a "
            "factor of two.",
            *_least_difference(plan),
        ]
    )


def _least_difference(plan: Plan) -> list[str]:
    """The smallest difference to find, with variances from the folder's finished runs or else assumed ones."""
    settings, metric = plan.settings, next(iter(plan.evaluate.metrics))
    compared = [arm for arm in settings.arms if not arm.is_reference]
    pairs = (len(compared) - 1 if settings.baseline else 0) + sum(arm.against is not None for arm in settings.arms)
    seeds, subjects = len(settings.seeds), tested_subjects(plan)
    if not pairs:
        return []
    if seeds == 1:
        return ["One seed says nothing about other trainings, so the smallest difference to find is unknown."]
    found, source = _pilot(settings.output), "the variances of the finished runs"
    if found is None:
        if "dice" not in metric:
            return [
                f"The smallest difference in {metric} that this can find is unknown until two seeds of two arms "
                "are done."
            ]
        found = ASSUMED
        sizes = ", ".join(f"{name} {math.sqrt(value):.3f}" for name, value in found._asdict().items())
        source = f"assumed standard deviations of a difference ({sizes}); a pilot in this folder gives better ones"
    comparisons = pairs * len(plan.fractions())
    one, most = (detectable(found, seeds, subjects, ALPHA / count) for count in (1, comparisons))
    return [
        f"With {seeds} seeds and {subjects} test {plural(subjects, 'subject')}, a true difference of "
        f"{one:.3f} in {metric} is found in {100 * POWER:.0f} % of the cases if it is the only comparison, and "
        f"{most:.3f} if it is the first of {comparisons} in Holm's procedure, based on {source}."
    ]


def _pilot(folder: Path) -> Spread | None:
    """Mean variances over the comparisons of a folder with at least two seeds and two subjects."""
    if not (folder / "comparison.json").is_file():
        return None
    tables = Tables(folder)
    found = [tables.difference(pair, labels) for pair in tables.pairs for labels in tables.labels]
    parts = [one.parts for one in found if one is not None and min(one.parts.seeds, one.parts.subjects) > 1]
    spreads = [variances(one) for one in parts]
    return Spread(*(sum(values) / len(spreads) for values in zip(*spreads, strict=True))) if spreads else None


def dry_run(run: Run, plan: Plan, training: Cost | None = None) -> Cost:
    """Run a few steps of a run (one volume of an evaluation) in a folder that is deleted afterwards."""
    output = plan.settings.output
    with (
        made_folder(output),
        tempfile.TemporaryDirectory(prefix=".dry-run-", dir=output, ignore_cleanup_errors=True) as folder,
    ):
        place = Path(folder)
        override = {**run.override, "output_dir": str(place)}
        if "pretrained_encoder" in override:  # which is not made yet
            override["pretrained_encoder"] = None
            if override.get("norm") == "frozen":  # refused without it; steps with batch norms take as long
                override["norm"] = "batch"
        if run.stage == "evaluate":
            model = place / "model.pt"
            torch.save(plan.config(run).get("network_def").state_dict(), model)
            override["validate#dataset#data"] = f"$@data['{plan.evaluate.get('evaluated_list', 'test')}'][:1]"
        else:
            # an epoch of a few steps over few items: what is loaded is counted separately
            override |= {"max_epochs": 1, "train#trainer#epoch_length": STEPS, "resume": False}
            validated = (
                plan.config(run).get("validated_list", "validation") if run.stage != "pretrain" else "validation"
            )
            for name, part, count in (("training", "train", max(2, run.batch)), (validated, "validate", 2)):
                override[f"{part}#dataset#data"] = {
                    "_target_": "common.data.volume_sampler.first_volumes",
                    "items": f"$@data['{name}']",
                    "count": count,
                }
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
        times = [row["seconds"] for row in curve_rows(short) if row["tag"] == "train_loss"]
        step = (times[STEPS - 1] - times[0]) / (STEPS - 1)
        first = _first_event(place) - began
        return Cost(max(0.0, first - step), step, peak, disk)


def equal_time(plan: Plan, may_run: bool = True) -> dict[tuple[str, int], int]:
    """Extra fine-tuning steps of each arm, by number of labels, so that all take as long as the costliest.

    Pre-training must be done first. A failed one counts as zero, as does a foreign encoder file. The result is kept in
    ``equal_time.json``, so a second call plans the same runs.

    Args:
        may_run: measure a step for what the file lacks; if false, what it lacks has no extra steps.
    """
    spent = {arm.name: 0.0 for arm in plan.settings.arms}
    for run in plan.runs:
        outcome = read_outcome(run)
        if run.stage == "pretrain" and outcome.get("status") == "done":
            spent[run.arm] = max(spent[run.arm], outcome["seconds"])
    for arm in plan.settings.arms:  # in the order in which they start from each other
        spent[arm.name] += spent[arm.goes_on_from] if arm.goes_on_from else 0.0
    record = plan.settings.output / "equal_time.json"
    before = read_json(record, {})
    # What was measured for a gap stays, so that finished runs keep their lengths while arms and labels are added.
    known = before.get("pretraining_seconds", {})
    extra: dict[str, dict[str, int]] = {
        arm: dict(table)
        for arm, table in before.get("extra_steps", {}).items()
        if arm in spent and max(spent.values()) - spent[arm] == max(known.values()) - known[arm]
    }
    trained = [run for run in plan.runs if run.stage == "train" and run.labels is not None]
    missing = [run for run in trained if str(run.labels) not in extra.get(run.arm, {})]
    steps: dict[tuple, float] = {}
    for run in missing if may_run else ():
        kind = plan.kind(run)
        if kind not in steps:
            steps[kind] = dry_run(run, plan).step
        more = round((max(spent.values()) - spent[run.arm]) / steps[kind])
        extra.setdefault(run.arm, {})[str(run.labels)] = more
    if missing and may_run:
        write_json(record, {"pretraining_seconds": spent, "extra_steps": extra})
    return {(arm, int(labels)): more for arm, table in extra.items() for labels, more in table.items()}


def _is_done(run: Run) -> bool:
    outcome = read_outcome(run)
    readable = all(path.is_file() for path in run.inputs)
    return outcome.get("status") == "done" and readable and run.made(outcome)


def _of_stage(plan: Plan, stage: str, arm: str) -> Run:
    return next(run for run in plan.runs if (run.stage, run.arm) == (stage, arm))


def _first_event(folder: Path) -> float:
    """End of the first step, in seconds since the epoch."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    times = []
    for file in folder.glob("tensorboard/events.*"):
        events = EventAccumulator(str(file))
        events.Reload()
        times += [events.Scalars("train_loss")[0].wall_time] if "train_loss" in events.Tags()["scalars"] else []
    return min(times)


def _item(plan: Plan) -> tuple[float, int]:
    """Seconds to load one item through the deterministic transforms, and its bytes in the cache."""
    transforms: Any = plan.train.get("validate#preprocessing")
    began = time.time()
    item = transforms(dict(plan.train.get("data")["training"][0]))
    values = item.values() if isinstance(item, dict) else []
    size = sum(value.numel() * value.element_size() for value in values if isinstance(value, torch.Tensor))
    return time.time() - began, size if plan.train.get("cache", "auto") in ("auto", "memory") else 0
