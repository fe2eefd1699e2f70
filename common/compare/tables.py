"""Read the tables of a comparison's output folder and group them for the report."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..json_files import read_json
from .statistics import UNTRAINED, Difference, Scores, Verdict, best_score, compare_arms, judge, mean_and_spread

__all__ = ["Tables", "device_hours", "kind_of", "plural", "span"]

GPU, CPU = "GPU", "CPU-process"
"""Kinds of devices, as the report names their hours."""

FLOATS = (
    "fraction",
    "value",
    "score",
    "seconds",
    "peak_memory_mb",
    "peak_gpu_mb",
    "device_hours",
    "truth",
    "prediction",
)


class Tables:
    """The tables that ``collect`` wrote into ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.about: dict[str, Any] = read_json(folder / "comparison.json")
        self._read: dict[str, list[dict[str, Any]]] = {}

    @property
    def arms(self) -> list[str]:
        return list(self.about["arms"])

    @property
    def others(self) -> list[str]:
        """Arms to compare with the baseline."""
        base, arms = self.about["baseline"], self.about["arms"]
        return [arm for arm in arms if arm != base and not arms[arm].get("reference")] if base else []

    @cached_property
    def pairs(self) -> list[tuple[str, str]]:
        """Pairs to compare: each arm with the baseline, then arms that name another arm of the report with that one."""
        named = [(arm, self.about["arms"][arm].get("against")) for arm in self.arms]
        base = [(arm, self.about["baseline"]) for arm in self.others]
        return base + [pair for pair in named if pair[1] in self.arms and pair not in base]

    @property
    def metrics(self) -> dict[str, str]:
        return self.about["metrics"]

    @property
    def main_metric(self) -> str:
        return next(iter(self.metrics))

    def rows(self, name: str) -> list[dict[str, Any]]:
        """A table with numbers as numbers, read once; empty if there is none."""
        if name not in self._read:
            self._read[name] = _rows(self.folder / f"{name}.csv")
        return self._read[name]

    @property
    def subjects(self) -> list[dict[str, Any]]:
        return self.rows("subjects")

    @cached_property
    def _scores(self) -> dict[tuple, dict[tuple[int, str], float]]:
        groups: dict[tuple, dict[tuple[int, str], float]] = {}
        for row in self.subjects:
            key = (row["arm"], row["labels"], row["metric"], row["structure"])
            groups.setdefault(key, {})[row["seed"], row["subject"]] = row["value"]
        return groups

    def scores(self, arm: str, labels: int, metric: str, structure: str = "mean") -> Scores:
        return self._scores.get((arm, labels, metric, structure), {})

    @cached_property
    def labels(self) -> list[int]:
        """Requested numbers of labels, even without finished runs (except in older folders)."""
        there = {row["labels"] for row in self.subjects}
        return sorted(there | {int(labels) for labels in self.about.get("labelled", ())}) if there else []

    @cached_property
    def structures(self) -> list[str]:
        """Names in the order of the evaluation, without the mean."""
        return [name for name in dict.fromkeys(row["structure"] for row in self.subjects) if name != "mean"]

    @cached_property
    def structure_names(self) -> dict[int, str]:
        """Class number -> name, without the background."""
        names = self.about.get("structure_names") or dict(enumerate(self.structures, start=1))
        return {int(number): str(name) for number, name in names.items() if int(number) > 0}

    def difference(
        self, pair: tuple[str, str], labels: int, metric: str = "", structure: str = "mean"
    ) -> Difference | None:
        """Difference of two arms in a metric, by default the main one; None if they share no score."""
        metric = metric or self.main_metric
        first, second = (self.scores(arm, labels, metric, structure) for arm in pair)
        # In a table from elsewhere a missing score may have any reason.
        own = not any(self.about["arms"].get(arm, {}).get("scores") for arm in pair)
        return compare_arms(first, second, self.metrics.get(metric) == "higher", best_score(metric) if own else None)

    def missing_seeds(self, arm: str, labels: int) -> list[int]:
        """Seeds of the comparison without a score of the main metric in all folds."""
        there = {seed for (seed, _), value in self.scores(arm, labels, self.main_metric).items() if value == value}
        if self.about.get("folds"):
            fractions = {row["fraction"] for row in self.subjects if row["labels"] == labels}
            costs = [row for row in self.rows("costs") if row["arm"] == arm and row["fraction"] in fractions]
            there -= {row["seed"] for row in costs if row["stage"] == "evaluate" and row["status"] != "done"}
        return [seed for seed in self.about["seeds"] if seed not in there]

    @cached_property
    def verdicts(self) -> dict[tuple[tuple[str, str], int], Verdict]:
        """Verdict for each pair and number of labels, all in one family; an arm that lacks a seed has none.

        Nor have two arms that have learnt nothing: they are close to each other whatever they started from.
        """
        keys = [(pair, labels) for labels in self.labels for pair in self.pairs]
        found = [
            None if any(self.missing_seeds(arm, labels) for arm in pair) else self.difference(pair, labels)
            for pair, labels in keys
        ]
        judged = judge(found, self.about.get("margin"), self.metrics[self.main_metric] == "higher")
        verdicts = dict(zip(keys, judged, strict=True))
        for (pair, labels), verdict in verdicts.items():
            if verdict.text != "incomplete" and all(self.untrained(arm, labels) for arm in pair):
                verdicts[pair, labels] = Verdict("untrained")
        return verdicts

    def untrained(self, arm: str, labels: int) -> bool:
        """Whether the main metric is Dice and its mean over subjects and seeds is below ``UNTRAINED``."""
        scores = self.scores(arm, labels, self.main_metric)
        return "dice" in self.main_metric and bool(scores) and mean_and_spread(scores)[0] < UNTRAINED

    def labelled(self, labels: int) -> str:
        """Text for a number of labels: how many were really used, and subjects if one has several scans."""
        training, validation = self.about["labelled"][str(labels)]  # keys of JSON are texts
        counts = (self.about.get("training_subjects") or {}).get(str(labels))
        people = f" ({span(counts)} {plural(counts[-1], 'subject')})" if counts else ""
        return f"{training} training{people} + {validation} validation labels"

    @cached_property
    def last_thirds(self) -> dict[tuple[str, int], float]:
        """Arm and number of labels -> improvement in the main metric in validation over the last third of fine-tuning.

        It is the slope of a line through the last third times its length, averaged over seeds; above zero is better.
        Curves with fewer than nine validations are left out: two points give no reliable slope.
        """
        sign = 1 if self.metrics[self.main_metric] == "higher" else -1
        labels = {row["fraction"]: row["labels"] for row in self.subjects}
        curves: dict[tuple[str, int], dict[Any, list[tuple[float, float]]]] = {}
        for row in self.rows("curves"):
            if row["stage"] == "train" and row["tag"] == self.main_metric and row["fraction"] in labels:
                seeds = curves.setdefault((row["arm"], labels[row["fraction"]]), {})
                seeds.setdefault((row["seed"], row.get("fold")), []).append((row["step"], row["value"]))
        found = {}
        for key, seeds in curves.items():
            ends = [np.array(sorted(curve)[-(len(curve) // 3) :]) for curve in seeds.values() if len(curve) >= 9]
            if ends:
                gains = [np.polyfit(end[:, 0], end[:, 1], 1)[0] * (end[-1, 0] - end[0, 0]) for end in ends]
                found[key] = sign * float(np.mean(gains))
        return found

    def stopped(self, arm: str, labels: int) -> tuple[int, int]:
        """Number of fine-tunings that patience ended before the cap of steps, and of all finished ones."""
        done = self.fine_tunings(arm, labels)
        return sum(row["steps"] < (row.get("cap") or 0) for row in done), len(done)

    @cached_property
    def trials(self) -> list[dict[str, Any]]:
        """Results of the trials of ``--tune``, with their ``values`` by id and the mean ``score`` over their seeds."""
        found: dict[tuple, list[dict[str, Any]]] = {}
        for row in self.rows("tune"):
            found.setdefault((row["arm"], row["labels"], row.get("fold"), row["trial"]), []).append(row)
        return [
            {
                **rows[0],
                "values": json.loads(rows[0]["values"]),
                "status": next((row["status"] for row in rows if row["status"] != "done"), "done"),
                "score": sum(row["score"] for row in rows) / len(rows),
            }
            for rows in found.values()
        ]

    def pretraining_seconds(self, arm: str) -> float:
        """Seconds of one pre-training of an arm, including that of the arm it starts from; 0 if there was none."""
        return self._pretraining(arm, lambda row: row["seconds"])

    def pretraining_hours(self, arm: str, kind: str) -> float:
        """The same in hours of devices of a kind."""
        return self._pretraining(arm, lambda row: device_hours([row], kind))

    def _pretraining(self, arm: str, cost: Callable[[dict[str, Any]], float]) -> float:
        spent = 0.0
        while arm:
            own = [cost(row) for row in self.rows("costs") if row["arm"] == arm and row["stage"] == "pretrain"]
            spent += max((one for one in own if not math.isnan(one)), default=0.0)
            arm = self.about["arms"][arm].get("pretrain_from")
        return spent

    @cached_property
    def device_kinds(self) -> list[str]:
        """Kinds of devices whose hours tell more than the clock: GPUs, and CPUs that several processes shared."""
        done = [row for row in self.rows("costs") if row["status"] == "done"]
        several = any((row.get("processes") or 1) > 1 for row in done if kind_of(row) == CPU)
        return [GPU] * any(kind_of(row) == GPU for row in done) + [CPU] * several

    def fine_tunings(self, arm: str, labels: int) -> list[dict[str, Any]]:
        """Costs of the finished fine-tunings of an arm with a number of labels."""
        fractions = {row["fraction"] for row in self.subjects if row["labels"] == labels}
        return [
            row
            for row in self.rows("costs")
            if row["stage"] == "train"
            and row["status"] == "done"
            and row["arm"] == arm
            and row["fraction"] in fractions
        ]

    @property
    def made_elsewhere(self) -> list[str]:
        """Arms from encoder files that this comparison did not make; their cost is unknown."""
        return [name for name, arm in self.about["arms"].items() if arm.get("made_elsewhere")]

    @cached_property
    def predictions(self) -> list[dict[str, Any]]:
        """Predicted and true numbers of scans, for tasks that predict a number."""
        return [row for row in self.rows("predictions") if not math.isnan(row["truth"])]

    def examples(self) -> Iterator[tuple[str, dict[str, dict[str, Any]]]]:
        """Subject, and its entry for each arm."""
        path = self.folder / "examples.json"
        entries = read_json(path, [])
        for subject in dict.fromkeys(entry["subject"] for entry in entries):
            yield subject, {entry["arm"]: entry for entry in entries if entry["subject"] == subject}


def kind_of(row: dict[str, Any]) -> str | None:
    """Kind of the devices of a run, of its row in ``costs.csv``; None where it has none, as in older folders."""
    return (CPU if row["device"].startswith("CPU") else GPU) if row.get("device") else None


def device_hours(rows: Sequence[dict[str, Any]], kind: str) -> float:
    """Hours of all devices of a kind in rows of ``costs.csv``."""
    hours = [row["device_hours"] for row in rows if kind_of(row) == kind]
    return sum(value for value in hours if not math.isnan(value))


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [{key: _number(key, value) for key, value in row.items()} for row in csv.DictReader(file)]


def _number(key: str, value: str) -> Any:
    if key in ("seed", "labels", "step", "steps", "subjects", "trial", "cap", "fold", "processes", "epochs"):
        return int(value) if value else None
    if key in FLOATS:
        return float(value) if value else math.nan
    return value


def plural(number: int, word: str) -> str:
    return word if number == 1 else f"{word}s"


def span(numbers: Sequence[int]) -> str:
    """ "2 to 4" of sorted numbers."""
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
