"""Plain tables of a comparison, from the files of its runs."""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ..files import atomic_write, names_below, without_ending
from ..json_files import read_json, write_json
from ..nifti import is_nifti, nifti_affine, read_nifti
from ..saved_scores import saved_scores
from .child import machine, read_outcome, versions
from .plan import Plan, example_root
from .run import Run
from .settings import Arm, CompareError
from .trials import list_trials

__all__ = ["collect", "write_example_list"]

SUBJECTS = ("arm", "fraction", "labels", "seed", "metric", "structure", "subject", "value")
# What came later stands last: folders of comparisons from before have no such columns.
RESULTS = ("arm", "fraction", "labels", "seed", "metric", "structure", "value", "subjects", "steps", "seconds")
CURVES = ("arm", "fraction", "seed", "stage", "tag", "step", "seconds", "value", "fold")
COSTS = (
    "arm",
    "stage",
    "fraction",
    "seed",
    "status",
    "seconds",
    "peak_memory_mb",
    "steps",
    "folder",
    "reason",
    "cap",
    "fold",
    "peak_gpu_mb",
    "taken",
    "processes",
    "device",
    "device_hours",
    "epochs",
)
PREDICTIONS = ("arm", "fraction", "labels", "seed", "subject", "truth", "prediction")
TRIALS = ("arm", "fraction", "labels", "trial", "values", "status", "score", "chosen", "fold", "seed")
PROBES = ("arm", "fraction", "labels", "seed", "probe", "target", "metric", "structure", "value")


def collect(plan: Plan, command: str | None) -> None:
    """Write the tables of a comparison into the output folder. They are ``comparison.json``, ``subjects.csv``,
    ``results.csv``, ``curves.csv``, ``costs.csv`` and, if there are any, ``examples.json``, ``predictions.csv`` and
    ``probes.csv``. ``command`` is the command of the comparison; None keeps the recorded one.
    """
    settings = plan.settings
    outcomes = {id(run): read_outcome(run) for run in plan.runs}
    done = [run for run in plan.runs if outcomes[id(run)].get("status") == "done"]
    names = structure_names(plan)

    curves = {id(run): list(curve_rows(run)) for run in done if run.stage in ("pretrain", "train")}
    for run in (run for run in done if "patience" in run.override):
        steps = [row["step"] for row in curves.get(id(run), ()) if row["tag"] == "train_loss"]
        outcomes[id(run)] |= {"steps": max(steps)} if steps and run.stage == "train" else {}
    subjects = [row for run in done if run.stage == "evaluate" for row in subject_rows(run, plan, names)]
    tested = {row["subject"] for row in subjects}
    subjects += [row for arm in settings.arms if arm.scores for row in reference_rows(arm, plan)]
    trained: dict[tuple, list[dict[str, Any]]] = {}
    for run in (run for run in plan.runs if run.stage == "train"):
        trained.setdefault((run.arm, run.labels, run.seed), []).append(outcomes[id(run)])
    _write_table(settings.output / "subjects.csv", SUBJECTS, subjects)
    results = []
    for row in mean_rows(subjects):
        parts = trained.get((row["arm"], row["labels"], row["seed"]), [])  # one per fold
        seconds = [part["seconds"] for part in parts if part.get("seconds") is not None]
        steps = [part["steps"] for part in parts if part.get("steps") is not None]
        results.append({**row, "steps": max(steps) if steps else None, "seconds": sum(seconds) if seconds else None})
    _write_table(settings.output / "results.csv", RESULTS, results)
    if settings.tune:
        _write_table(settings.output / "tune.csv", TRIALS, trial_rows(plan))
    _write_table(settings.output / "curves.csv", CURVES, [row for rows in curves.values() for row in rows])
    _write_table(settings.output / "costs.csv", COSTS, [cost_row(run, outcomes[id(run)], plan) for run in plan.runs])
    predictions = [row for run in done if run.stage == "evaluate" for row in prediction_rows(run, plan)]
    probes = [row for run in done if run.stage == "probe" for row in probe_rows(run, names)]
    for name, columns, rows in (("predictions", PREDICTIONS, predictions), ("probes", PROBES, probes)):
        if rows or (name == "probes" and settings.probe):
            _write_table(settings.output / f"{name}.csv", columns, rows)
        else:  # the report would show those of an earlier call
            (settings.output / f"{name}.csv").unlink(missing_ok=True)
    examples = [row for run in done if run.stage == "infer" for row in example_rows(run, plan)]
    write_json(settings.output / "examples.json", examples, default=str)
    write_json(
        settings.output / "comparison.json",
        {
            "bundle": settings.bundle.name,
            "task": plan.train.get("task"),
            "arms": {
                arm.name: {
                    "description": arm.describe() + _whose(arm, subjects, tested),
                    "reference": arm.is_reference,
                    "scores": bool(arm.scores),
                    "one_pretraining": bool(arm.pretrain or arm.encoder or arm.encoder_of)
                    and not arm.pretrain_per_seed,
                    "pretrain_from": arm.goes_on_from,
                    "made_elsewhere": arm.encoder is not None,
                    "against": arm.against,
                }
                for arm in settings.arms
            },
            # a call has just run what was stale, and need not read every network again; scans may change meanwhile
            "stale": [
                str(run)
                for run in done
                if (is_stale(run, outcomes[id(run)]) if command is None else run.has_other_scans(outcomes[id(run)]))
            ],
            "baseline": settings.baseline,
            "fractions": list(plan.fractions()),
            "training_subjects": training_subjects(plan),
            "seeds": list(settings.seeds),
            "equal": settings.equal,
            "transductive": settings.transductive,
            "evaluate_override": dict(settings.evaluate_override),
            "steps": max((run.steps for run in plan.runs if run.stage == "train"), default=None),
            "metrics": plan.evaluate.metrics,
            "margin": plan.margin,
            "labelled": plan.labelled(),
            "validation_from_labels": settings.validation_from_labels,
            "validated_on_test": plan.validated_on_test,
            "trials": list_trials(settings),
            "tune_seeds": settings.tune_seeds,
            "patience": settings.patience,
            "folds": settings.folds,
            "structure_names": names,
            "command": command or read_json(settings.output / "comparison.json", {}).get("command", ""),
            "packages": _distinct([outcomes[id(run)].get("packages", versions()) for run in done]),
            "machine": _distinct([outcomes[id(run)].get("machine", machine()) for run in done]),
        },
        default=str,
    )


def is_stale(run: Run, outcome: Mapping[str, Any]) -> bool:
    """Whether a result is of another config or other data than the run now has, as far as its inputs are still there.

    A call runs such a run again; ``--report`` runs nothing.
    """
    known = outcome.get("digest")
    return known is not None and all(path.is_file() for path in run.inputs) and not run.made(outcome)


def _distinct(values: Sequence[Any]) -> list[Any]:
    """Distinct values; runs of one folder may come from several machines."""
    return [value for number, value in enumerate(values) if value not in values[:number]]


def training_subjects(plan: Plan) -> dict[int, list[int]]:
    """Number of training items -> numbers of their subjects over seeds; empty if each item has its own subject.

    Items without ``subject`` are ignored.
    """
    items = plan.train.get("data")["training"]
    if not all("subject" in item for item in items) or _subjects(items) == len(items):
        return {}
    found: dict[int, set[int]] = {}
    for run in plan.runs:
        if run.stage == "train" and run.arm == plan.settings.arms[0].name and run.labels is not None:
            found.setdefault(run.labels, set()).add(_subjects(plan.lists(run)["training"]))
    return {labels: sorted(counts) for labels, counts in sorted(found.items())}


def _subjects(items: Sequence[Mapping[str, Any]]) -> int:
    return len({(str(item.get("domain", "")), str(item["subject"])) for item in items})


def structure_names(plan: Plan) -> dict[int, str]:
    """Names of the classes from the id ``structure_names`` of the evaluation's config, or their numbers."""
    names = plan.evaluate.get("structure_names") or {}
    return {int(number): str(name) for number, name in names.items()}


def subject_rows(run: Run, plan: Plan, names: dict[int, str]) -> Iterator[dict[str, Any]]:
    """Scores per subject and structure, from the tables of MONAI's ``MetricsSaver``.

    Scans with the same ``subject`` in the datalist count as one subject with the mean of their scores, since they are
    not independent. A metric without a value per subject, such as an area under a curve, comes from ``metrics.csv`` as
    the value of one subject named ``all``.
    """
    classes = plan.evaluate.get("num_classes")
    folder = Path(run.override["output_dir"]) / "eval"
    for metric in plan.evaluate.metrics:
        path = folder / f"{metric}_raw.csv"
        if not path.is_file():
            value = _overall(folder / "metrics.csv", metric)
            whole = "all" if run.fold is None else f"all of fold {run.fold}"
            yield {**_key(run), "metric": metric, "structure": "mean", "subject": whole, "value": value}
            continue
        rows = metric_rows(path)
        owners, names_of_files = owners_of(plan.test), scan_names([row["filename"] for row in rows], plan)
        scores: dict[tuple[str, str], list[float]] = {}
        for row, name in zip(rows, names_of_files, strict=True):
            subject = owners.get(row["filename"], name)
            columns = [name for name in row if name not in ("filename", "mean")]
            first = 0 if len(columns) == classes else 1  # without the background's column the first is class 1
            values = {names.get(n, f"class {n}"): row[column] for n, column in enumerate(columns, start=first)}
            for structure, value in [("mean", row["mean"]), *(values.items() if len(values) > 1 else ())]:
                scores.setdefault((structure, subject), []).append(float(value))
        for (structure, subject), found in scores.items():
            there = [value for value in found if not math.isnan(value)]
            value = sum(there) / len(there) if there else math.nan
            yield {**_key(run), "metric": metric, "structure": structure, "subject": subject, "value": value}


def owners_of(items: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Image file -> its subject; with the domain where one number is given to people of several domains."""
    known = [item for item in items if "subject" in item]
    domains: dict[str, set[str]] = {}
    for item in known:
        domains.setdefault(str(item["subject"]), set()).add(str(item.get("domain", "")))
    return {
        _first(item["image"]): str(item["subject"])
        if len(domains[str(item["subject"])]) == 1
        else f"{item.get('domain', '')}/{item['subject']}"
        for item in known
    }


def tested_subjects(plan: Plan) -> int:
    """Number of test subjects, as ``subject_rows`` names them."""
    owners = owners_of(plan.test)
    return len({owners.get(file, file) for file in (_first(item["image"]) for item in plan.test)})


def scan_names(files: Sequence[str], plan: Plan) -> list[str]:
    """Names of scans without a subject, the same in each fold, of which a run has only its own scans."""
    tested = [_first(item["image"]) for item in plan.test]
    named = dict(zip(tested, names_below(tested), strict=True))
    return [named[file] for file in files] if named.keys() >= {*files} else names_below(files)


def reference_rows(arm: Arm, plan: Plan) -> Iterator[dict[str, Any]]:
    """Read scores from a CSV file, for every number of labels unless the file states one.

    Raises:
        CompareError: a value is not a number.
    """
    with open(str(arm.scores), encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            try:
                value, seed = float(row["value"]), int(row.get("seed") or plan.settings.seeds[0])
                labels = int(row["labels"]) if row.get("labels") else None
            except (TypeError, ValueError):
                raise CompareError(f"{arm.scores}, line {number}: value, seed or labels is not a number.") from None
            metric = row.get("metric") or next(iter(plan.evaluate.metrics))
            one = {"arm": arm.name, "seed": seed, "metric": metric, "structure": row.get("structure") or "mean"}
            for fraction, count in plan.fractions().items():
                if labels in (None, count):
                    yield {**one, "subject": row["subject"], "value": value, "fraction": fraction, "labels": count}


def _whose(arm: Arm, subjects: Sequence[dict[str, Any]], tested: set[str]) -> str:
    """How many test subjects a reference's scores cover, if they differ from the test subjects."""
    own = {row["subject"] for row in subjects if row["arm"] == arm.name}
    if not arm.scores or not tested or own == tested:
        return ""
    return f", of {len(own & tested)} of the {len(tested)} test subjects and {len(own - tested)} others"


def metric_rows(path: Path) -> list[dict[str, str]]:
    """``saved_scores`` of a run.

    Raises:
        CompareError: a row has fewer cells than the header.
    """
    try:
        return saved_scores(path)
    except ValueError as error:
        raise CompareError(str(error)) from None


def prediction_rows(run: Run, plan: Plan) -> Iterator[dict[str, Any]]:
    """Rows of the ``common.handlers.PredictionTable`` of an evaluation, if a number is predicted."""
    path = Path(run.override["output_dir"]) / "eval" / "predictions.csv"
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if any(name.startswith("probability_") for row in rows for name in row):
        return  # classes
    for row, name in zip(rows, scan_names([row["filename"] for row in rows], plan), strict=True):
        truth = float(row["label"] or math.nan)
        yield {**_key(run), "subject": name, "truth": truth, "prediction": float(row["prediction"])}


def _overall(path: Path, metric: str) -> float:
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    values = dict(re.split(r"\s*[\t,]\s*", line.strip(), maxsplit=1) for line in lines if line.strip())
    if metric not in values:
        raise CompareError(f"{path} has no {metric}: the evaluation must save each of its `metrics` (MetricsSaver).")
    return float(values[metric])


def mean_rows(subjects: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Means over subjects; missing values (NaN) are left out."""
    groups: dict[tuple, list[float]] = {}
    for row in subjects:
        key = tuple(row[name] for name in ("arm", "fraction", "labels", "seed", "metric", "structure"))
        groups.setdefault(key, []).append(row["value"])
    for key, values in groups.items():
        there = [value for value in values if not math.isnan(value)]
        mean = sum(there) / len(there) if there else math.nan
        names = ("arm", "fraction", "labels", "seed", "metric", "structure")
        yield {**dict(zip(names, key, strict=True)), "value": mean, "subjects": len(there)}


def trial_rows(plan: Plan) -> list[dict[str, Any]]:
    """The result of each tuning trial on each seed: its best validation, and which trial is best by mean over seeds.

    A trial that failed on one of its seeds is not the best.
    """
    metric, direction = next(iter(plan.evaluate.metrics.items()))
    sign, rows = 1 if direction == "higher" else -1, []
    found: dict[tuple, dict[int | None, list[tuple[float, dict[str, Any]]]]] = {}
    for run in (run for run in plan.runs if run.stage == "tune"):
        status = read_outcome(run).get("status", "missing")
        scores = [row["value"] for row in curve_rows(run) if row["tag"] == metric] if status == "done" else []
        if status == "done" and not scores:
            raise CompareError(
                f"{run}: its validation has no {metric}, which --tune needs to choose: add it to the validation."
            )
        score = max((sign * score for score in scores if not math.isnan(score)), default=-math.inf)
        values = {key: run.override[key] for key in plan.settings.tune}
        rows.append({**_key(run), "trial": run.trial, "values": json.dumps(values), "status": status, "chosen": ""})
        if scores:
            rows[-1]["score"] = sign * score if math.isfinite(score) else math.nan
        found.setdefault((run.arm, run.labels, run.fold), {}).setdefault(run.trial, []).append((score, rows[-1]))
    for trials in found.values():
        best = max(trials.values(), key=_mean_score)
        for _, row in best if _mean_score(best) > -math.inf else ():
            row["chosen"] = "yes"
    return rows


def _mean_score(scores: Sequence[tuple[float, Any]]) -> float:
    return sum(score for score, _ in scores) / len(scores)


def choose_trials(plan: Plan) -> dict[tuple[str, int, int | None], int]:
    """The trial that is best in validation, per arm, number of labels and fold; none while a trial is missing.

    A failed trial, such as one with a diverging rate, counts as tried.
    """
    rows = trial_rows(plan)
    waiting = {(row["arm"], row["labels"], row["fold"]) for row in rows if row["status"] not in ("done", "failed")}
    best = {(row["arm"], row["labels"], row["fold"]): row["trial"] for row in rows if row["chosen"]}
    return {key: trial for key, trial in best.items() if key not in waiting}


def curve_rows(run: Run) -> Iterator[dict[str, Any]]:
    """Every scalar of the run's TensorBoard events, by optimiser steps and by seconds of work without pauses."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    points: dict[str, dict[int, tuple[float, float]]] = {}
    for file in sorted(run.folder.glob("tensorboard/events.*"), key=os.path.getmtime):
        events = EventAccumulator(str(file), size_guidance={"scalars": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            points.setdefault(tag, {}).update((e.step, (e.wall_time, e.value)) for e in events.Scalars(tag))
    first = min((time for values in points.values() for time, _ in values.values()), default=0.0)
    attempts = read_outcome(run).get("attempts") or [{"started": first, "seconds_before": 0.0}]
    per_epoch = run.steps // run.epochs
    for tag, values in sorted(points.items()):
        # Loss is written every step; what an epoch ends with, validation above all, once per epoch.
        scale = 1 if tag == "train_loss" else per_epoch
        for step, (time, value) in sorted(values.items()):
            attempt = next((one for one in reversed(attempts) if one["started"] <= time), attempts[0])
            yield {
                **{name: _key(run)[name] for name in ("arm", "fraction", "seed", "fold")},
                "stage": run.stage,
                "tag": tag,
                "step": step * scale,
                "seconds": round(attempt["seconds_before"] + time - attempt["started"], 3),
                "value": value,
            }


def cost_row(run: Run, outcome: dict[str, Any], plan: Plan) -> dict[str, Any]:
    status = outcome.get("status", "missing")
    reason = outcome.get("reason", "")
    if status == "started":
        status, reason = "missing", "it was interrupted; call the comparison again to resume"
    seconds, steps = outcome.get("seconds"), outcome.get("steps")
    processes, device = devices_of(outcome)
    return {
        **_key(run),
        "stage": run.stage,
        "status": status,
        "seconds": seconds,
        "peak_memory_mb": outcome.get("peak_memory_mb"),
        "peak_gpu_mb": outcome.get("peak_gpu_mb"),
        "steps": steps,
        "folder": run.folder.relative_to(plan.settings.output),
        "reason": reason,
        "cap": run.steps if run.stage == "train" else None,
        "taken": "yes" if outcome.get("trial") is not None else "",
        "processes": processes,
        "device": device,
        "device_hours": None if seconds is None or processes is None else round(processes * seconds / 3600, 6),
        # a run that patience ended stands at the epoch of its last step
        "epochs": round(run.epochs * steps / run.steps) if steps and run.epochs else None,
    }


def devices_of(outcome: Mapping[str, Any]) -> tuple[int | None, str | None]:
    """Number of processes of a run, each with a device of its own, and the kind of device: the GPU's name, or the CPU.

    Both are of the run itself, whatever ``--processes`` a later call has; None of a run that never began.
    """
    if not outcome.get("command"):
        return None, None
    found = re.search(r"--nproc_per_node=(\d+)", outcome["command"])
    name = str(outcome.get("machine", "CPU"))
    on_gpu = outcome.get("peak_gpu_mb") is not None and not name.startswith("CPU")
    device = name.rpartition(", ")[0] if on_gpu else name if name.startswith("CPU") else "CPU"
    return int(found[1]) if found else 1, device


def probe_rows(run: Run, names: dict[int, str]) -> Iterator[dict[str, Any]]:
    content = read_json(run.folder / f"probe-{run.target}.rows.json")
    for row in content["rows"]:
        structure = str(row.get("structure", "mean"))
        if structure.isdigit():
            structure = names.get(int(structure), f"class {structure}")
        yield {**_key(run), **row, "structure": structure}


def write_example_list(plan: Plan) -> None:
    """Write the datalist of the test volumes that the report shows."""
    images = [item["image"] for item in plan.shown]
    write_json(plan.settings.output / "examples.datalist.json", {"test": [{"image": image} for image in images]})


def shown_scores(plan: Plan) -> dict[str, float]:
    """Image file -> mean over the arms of the main metric, for the nets whose pictures are shown."""
    first = min((run.labels for run in plan.runs if run.labels is not None), default=0)
    scores: dict[str, list[float]] = {}
    for run in plan.runs:
        asked = run.stage == "evaluate" and run.seed == plan.settings.seeds[0] and run.labels == first and not run.fold
        path = Path(run.override.get("output_dir", "")) / "eval" / f"{next(iter(plan.evaluate.metrics))}_raw.csv"
        if asked and read_outcome(run).get("status") == "done" and path.is_file():
            for row in metric_rows(path):
                scores.setdefault(row["filename"], []).append(float(row["mean"]))
    means = {image: sum(values) / len(values) for image, values in scores.items()}
    return {image: mean for image, mean in means.items() if not math.isnan(mean)}


def choose_examples(plan: Plan) -> list[dict[str, Any]]:
    """Choose the test items to show, from worst to best in equal steps (1: the median); none without scores."""
    scores = shown_scores(plan)
    sign = 1 if next(iter(plan.evaluate.metrics.values())) == "higher" else -1
    ranked = [item for item in plan.candidates if _first(item["image"]) in scores]
    ranked.sort(key=lambda item: sign * scores[_first(item["image"])])
    count = min(plan.settings.examples, len(ranked))
    places = np.linspace(0, len(ranked) - 1, count) if count > 1 else [(len(ranked) - 1) // 2] * count
    return [ranked[round(place)] for place in places]


def example_rows(run: Run, plan: Plan) -> Iterator[dict[str, Any]]:
    items, scores = plan.shown, shown_scores(plan)
    root = example_root(items)
    # of all test scans: label maps of scans that were shown before may still be there
    stems = [without_ending(Path(_first(item["image"])).name) for item in plan.candidates]
    ranks = {1: ["median"], 3: ["worst", "median", "best"]}.get(len(items), [""] * len(items))
    for item, rank in zip(items, ranks, strict=True):
        image = _first(item["image"])
        if not is_nifti(image):
            continue  # the report draws with nibabel
        place = Path(os.path.relpath(image, root))
        stem = without_ending(place.name)
        written = sorted((run.folder / "predictions" / place.parent).glob("*.nii.gz"))
        prediction = next((path for path in written if _stem_of(path.name, stems) == stem), None)
        if prediction is not None:
            name = str(place.parent / stem)
            yield {
                **{key: _key(run)[key] for key in ("arm", "fraction", "seed")},
                "subject": name,
                "title": f"{name}\n{f'{rank}: ' if rank else ''}{scores[image]:.3f}, mean of all arms"
                if image in scores
                else name,
                "image": image,
                "label": mapped_label(item, name.replace(os.sep, "_"), plan),
                "prediction": str(prediction),
                "slices": plan.settings.example_slices,
            }


def _stem_of(prediction: str, stems: Sequence[str]) -> str:
    """Which scan's prediction a file is, by their names; that of scan_2 begins as that of scan does."""
    return max((stem for stem in stems if prediction.startswith(f"{stem}_")), key=len, default="")


def _first(image: Any) -> str:
    """The file of an image, or of its first modality."""
    return image if isinstance(image, str) else image[0]


def mapped_label(item: dict[str, Any], stem: str, plan: Plan) -> str | None:
    """The truth in the classes of the task, through the config's ``label_map`` if it has one."""
    groups = plan.evaluate.get("label_map")
    if not is_nifti(str(item.get("label"))):
        return None
    if not groups:
        return item["label"]
    if any(not isinstance(group, (list, tuple)) for group in groups.values()):
        return None  # several label schemes in one run: which is this item's is the transform's business
    path = plan.settings.output / "examples" / f"{stem}.nii.gz"
    source = read_nifti(item["label"])
    values = np.asarray(source.dataobj)
    classes = np.zeros(values.shape, np.min_scalar_type(max(map(int, groups))))
    for number, labels in groups.items():
        classes[np.isin(values, labels)] = number
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(classes, nifti_affine(item["label"], source)), path)  # type: ignore[attr-defined]
    return str(path)


def _key(run: Run) -> dict[str, Any]:
    return {"arm": run.arm, "fraction": run.fraction, "labels": run.labels, "seed": run.seed, "fold": run.fold}


def _write_table(path: Path, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
