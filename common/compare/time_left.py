"""About how long the rest of a comparison takes, by the runs that are done."""

from __future__ import annotations

import statistics
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..durations import format_duration
from .child import read_outcome, worked_before
from .plan import Plan
from .run import Run

__all__ = ["TimeLeft", "seconds_left"]

SMALL = ("infer", "probe")
"""Stages that count as nothing while none of them is done, as in the estimate of ``--plan``."""


class TimeLeft:
    """The time left of a comparison while some of its runs are done.

    Args:
        whole: plan of the whole comparison.
        runs: those that are done now.
        at_once: number of runs at a time.
    """

    def __init__(self, whole: Plan, runs: Sequence[Run], at_once: int = 1) -> None:
        self.plan, self.at_once = whole, at_once
        self.outcomes = {run.outcome: read_outcome(run) for run in (*whole.runs, *runs)}
        self.before = dict(self.outcomes)
        self.worked = {run.outcome: worked_before(run, self.outcomes[run.outcome]) for run in (*whole.runs, *runs)}
        self.began: dict[Path, float] = {}
        now = {run.outcome for run in runs}
        # What failed and is not among these runs failed in an earlier stage.
        self.ended = {path for path in self.outcomes.keys() - now if self._status(path) in ("failed", "skipped")}

    def begin(self, run: Run) -> str:
        """Note that a run begins: the time left in words, or nothing if it is unknown."""
        self.began[run.outcome] = time.time()
        if self._status(run.outcome) == "done":
            return ""  # either nothing is to be done, or it has changed, and who knows what else
        worked = {path: spent + self._since(path) for path, spent in self.worked.items()}
        seconds = seconds_left(self.plan, self.outcomes, self._over(), worked, self.at_once)
        return f"about {format_duration(seconds)} left" if seconds else ""

    def end(self, run: Run) -> None:
        """Note that a run was done, or failed or was skipped."""
        self.outcomes[run.outcome] = read_outcome(run)
        self.ended.add(run.outcome)

    def _over(self) -> set[Path]:
        """The runs that are over: without those of an earlier call, once one of these had to be done again."""
        again = [
            path
            for path in self.ended
            if self.before[path].get("status") == "done"
            and any(self.before[path].get(key) != self.outcomes[path].get(key) for key in ("digest", "scans"))
        ]
        done = {path for path in self.outcomes if self._status(path) == "done"}
        return self.ended if again else self.ended | done

    def _status(self, path: Path) -> str | None:
        return self.outcomes[path].get("status")

    def _since(self, path: Path) -> float:
        return time.time() - self.began[path] if path in self.began else 0.0


def seconds_left(
    plan: Plan,
    outcomes: Mapping[Path, Mapping[str, Any]],
    over: Collection[Path],
    worked: Mapping[Path, float],
    at_once: int = 1,
) -> float | None:
    """Seconds until all runs of a plan are done.

    A run takes as long as those before it of the same kind and number of labels, else of the same kind, else of the
    same stage, in proportion to its steps.

    Args:
        outcomes: outcome of each run by its file (``Run.outcome``), of this call or an earlier one.
        over: the runs that are done, failed or skipped.
        worked: seconds that the others have worked.
        at_once: number of runs at a time.

    Returns:
        None if no run of the stage of one of those left is done.
    """
    done = {path: outcome for path, outcome in outcomes.items() if outcome.get("status") == "done"}
    known = [(run, done[run.outcome]["seconds"]) for run in plan.runs if run.outcome in done]
    never = set(over) - done.keys()
    left = []
    for run in plan.runs:
        if run.outcome in over:
            continue
        if never.intersection(run.needs):  # it will be skipped, as will what needs it
            never.add(run.outcome)
            continue
        if run.is_copied:
            continue
        whole = _duration(run, known, plan)
        if whole is None:
            return None
        left.append(max(0.0, whole - worked.get(run.outcome, 0.0)))
    return max(sum(left) / at_once, max(left, default=0.0))


def _duration(run: Run, known: Sequence[tuple[Run, float]], plan: Plan) -> float | None:
    kind = plan.kind(run)
    same_stage = [(one, seconds) for one, seconds in known if plan.kind(one)[0] == kind[0]]
    same_kind = [(one, seconds) for one, seconds in same_stage if plan.kind(one) == kind]
    same_labels = [(one, seconds) for one, seconds in same_kind if one.labels == run.labels]
    for alike in (same_labels, same_kind, same_stage):
        if alike:
            return _at(run.steps, [(one.steps, seconds) for one, seconds in alike])
    return 0.0 if run.stage in SMALL else None


def _at(steps: int, measured: Sequence[tuple[int, float]]) -> float:
    """Seconds for a number of steps: on the line through what was measured, if it was for several numbers."""
    counts, seconds = zip(*measured, strict=True)
    if not all(counts):  # evaluations
        return statistics.fmean(seconds)
    if len(set(counts)) > 1:
        slope, start = statistics.linear_regression(counts, seconds)
        if slope >= 0 and start >= 0:
            return start + slope * steps
    return statistics.fmean(seconds) * steps / statistics.fmean(counts)
