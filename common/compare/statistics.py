"""How sure a difference between two arms is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy import stats

__all__ = ["Difference", "bootstrap_interval", "compare_arms", "interval_with_seeds", "mean_and_spread"]

CONFIDENCE = 0.95
RESAMPLES = 10_000
MIN_SUBJECTS = 6
"""For a bootstrap: fewer share a sign by chance too often, and then every resample has it."""

Scores = Mapping[tuple[int, str], float]
"""(seed, subject) -> score."""


class Difference(NamedTuple):
    """An arm against the baseline, paired by seed and subject.

    ``mean`` is arm minus baseline, whichever of higher and lower is better; ``better`` is the share of subjects whose
    mean over seeds is better. An interval is None where there are too few seeds or subjects for it.
    """

    mean: float
    over_subjects: tuple[float, float] | None
    with_seeds: tuple[float, float] | None
    seeds: int
    subjects: int
    better: float
    verdict: str


def compare_arms(arm: Scores, baseline: Scores, higher_is_better: bool) -> Difference | None:
    """The paired difference of two arms, None where they share no finite score.

    A verdict is ``better`` or ``worse`` only if the interval that includes the seeds lies on one side of zero; with one
    seed, of which the spread of trainings cannot be told, the interval over subjects decides and the verdict says that
    it is about ``these two models``.
    """
    pairs = sorted(key for key in arm.keys() & baseline.keys() if math.isfinite(arm[key] - baseline[key]))
    if not pairs:
        return None
    seeds = sorted({seed for seed, _ in pairs})
    subjects = sorted({subject for _, subject in pairs})
    table = np.full((len(seeds), len(subjects)), np.nan)
    for seed, subject in pairs:
        table[seeds.index(seed), subjects.index(subject)] = arm[seed, subject] - baseline[seed, subject]
    by_subject = np.nanmean(table, axis=0)
    mean = float(by_subject.mean())
    over_subjects = bootstrap_interval(by_subject)
    with_seeds = interval_with_seeds(table)
    better = float(np.mean(by_subject > 0 if higher_is_better else by_subject < 0))
    verdict = _verdict(table, mean, over_subjects, with_seeds, higher_is_better)
    return Difference(mean, over_subjects, with_seeds, len(seeds), len(subjects), better, verdict)


def _verdict(table, mean, over_subjects, with_seeds, higher_is_better: bool) -> str:
    if not np.nan_to_num(table).any():
        return "identical"
    interval = with_seeds or over_subjects
    if interval is None:
        return "too few subjects"
    low, high = interval
    sign = "better" if (mean > 0) == higher_is_better else "worse"
    verdict = "no difference found" if low <= 0 <= high else sign
    return verdict if with_seeds else f"{verdict} between these two models"


def bootstrap_interval(values: np.ndarray, seed: int = 0) -> tuple[float, float] | None:
    """Percentile bootstrap of the mean of ``values`` (N,), one a subject; None for fewer than six.

    It tells how the same trained models would do on other subjects, not what another training would give.
    """
    if len(values) < MIN_SUBJECTS:
        return None
    draws = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(values[draws].mean(axis=1), [tail, 100 - tail])
    return float(low), float(high)


def interval_with_seeds(table: np.ndarray) -> tuple[float, float] | None:
    """Interval of the mean difference that counts the spread of trainings as well as that of subjects.

    With v_s the variance of the seeds' means over the number of seeds and v_i that of the subjects' means over the
    number of subjects, the half width is Student's quantile times sqrt(v_s + v_i), with the degrees of freedom of Welch
    (1947) and Satterthwaite (1946). In simulations without a difference it contains zero in 93 to 99 % of the cases
    with three seeds and in 88 to 99 % with two, least where seeds outweigh subjects. A bootstrap over seeds would be
    far too narrow: of three seeds that share a sign, by chance a quarter of all cases, every resample has that sign.

    Args:
        table: differences (seeds, subjects), NaN where one is missing.

    Returns:
        The interval, None for fewer than two seeds. With one subject (a metric of the whole test part, such as an area
        under a curve) it counts the seeds alone.
    """
    if len(table) < 2:
        return None
    of_seeds, of_subjects = np.nanmean(table, axis=1), np.nanmean(table, axis=0)
    parts = [(means.var(ddof=1) / len(means), len(means) - 1) for means in (of_seeds, of_subjects) if len(means) > 1]
    mean, variance = of_subjects.mean(), sum(part for part, _ in parts)
    if variance == 0:
        return float(mean), float(mean)
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    half = stats.t.ppf(0.5 + CONFIDENCE / 2, freedom) * math.sqrt(variance)
    return float(mean - half), float(mean + half)


def mean_and_spread(scores: Scores) -> tuple[float, float | None, dict[int, float]]:
    """Mean over seeds of the means over subjects, their standard deviation (None with one seed), and each seed's."""
    seeds: dict[int, list[float]] = {}
    for (seed, _), value in scores.items():
        if math.isfinite(value):
            seeds.setdefault(seed, []).append(value)
    means = {seed: float(np.mean(values)) for seed, values in sorted(seeds.items())}
    if not means:
        return math.nan, None, {}
    values = list(means.values())
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None, means
