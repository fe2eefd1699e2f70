"""Certainty of a difference between two arms: two-way random effects of seeds and subjects, and verdicts of a report.

The difference of two arms in seed s and subject i is modelled as ``d_si = mean + a_s + b_i + e_si``: the chance in a
training, shared by all subjects; the effect of a subject; and a residual. With the mean squares of the table (Cornfield
and Tukey, "Average values of mean squares in factorials", 1956) the variance of the mean over n seeds and m subjects is
(MS_seeds + MS_subjects - MS_residual) / nm, which counts the residual once.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, special, stats

__all__ = [
    "Difference",
    "Parts",
    "Spread",
    "Verdict",
    "best_score",
    "compare_arms",
    "detectable",
    "half_width",
    "judge",
    "mean_and_spread",
    "mean_squares",
    "p_value",
    "power",
    "seeds_to_decide",
]

ALPHA = 0.05
POWER = 0.8
MOST_SEEDS = 100
DRAWS = 4000
UNTRAINED = 0.05  # a mean Dice below it says that a net has not learnt the task
BEST = {"dice": 1.0, "nsd": 1.0, "hd95": 0.0, "assd": 0.0, "voe": 0.0, "rvd": 0.0}

Scores = Mapping[tuple[int, str], float]
"""(seed, subject) -> score."""


class Parts(NamedTuple):
    """The numbers of a table of differences that define its interval; the mean squares may be arrays of draws."""

    mean: Any
    seeds: int
    subjects: int
    of_seeds: Any
    of_subjects: Any
    residual: Any


class Spread(NamedTuple):
    """Variances of a paired difference: of trainings, of subjects, and of the residual."""

    seeds: float
    subjects: float
    residual: float


class Difference(NamedTuple):
    """The difference of two arms, paired by seed and subject.

    ``parts.mean`` is arm minus other arm, for metrics of either direction. ``better`` is the share of subjects with a
    better mean over seeds. ``interval`` (95 %) covers seeds and subjects, or only subjects with one seed.
    ``over_subjects`` is the interval for the same models on other subjects. Both are None if nothing varies.
    """

    parts: Parts
    interval: tuple[float, float] | None
    over_subjects: tuple[float, float] | None
    better: float
    identical: bool


class Verdict(NamedTuple):
    """``better``, ``worse``, ``equivalent``, ``undecided``, ``identical``, ``incomplete`` or ``untrained``.

    ``seeds`` is the number of seeds that would decide an undecided verdict with the same mean and variances; None if
    even ``MOST_SEEDS`` would not.
    """

    text: str
    seeds: int | None = None


def best_score(metric: str) -> float | None:
    """The best score of a metric of masks, by its name (``val_mean_dice``); None for other metrics."""
    return next((BEST[word] for word in metric.split("_") if word in BEST), None)


def compare_arms(arm: Scores, baseline: Scores, higher_is_better: bool, best: float | None = None) -> Difference | None:
    """The paired difference of two arms; None if they share no finite score.

    ``best`` is what a missing score counts beside one of the other arm, for a metric whose score is missing if truth
    and prediction are empty (``common.metrics.empty_masks``): the other arm has then invented a structure, which would
    cost it nothing if the pair were left out. Without it, such pairs are left out.
    """
    differences = {key: _difference(arm[key], baseline[key], best) for key in arm.keys() & baseline.keys()}
    pairs = sorted(key for key, difference in differences.items() if math.isfinite(difference))
    if not pairs:
        return None
    seeds = sorted({seed for seed, _ in pairs})
    subjects = sorted({subject for _, subject in pairs})
    table = np.full((len(seeds), len(subjects)), np.nan)
    for seed, subject in pairs:
        table[seeds.index(seed), subjects.index(subject)] = differences[seed, subject]
    identical, imputed = not np.nan_to_num(table).any(), int(np.isnan(table).sum())
    table = fill(table)
    parts, by_subject = mean_squares(table, imputed), table.mean(axis=0)
    better = float(np.mean(by_subject > 0 if higher_is_better else by_subject < 0))
    return Difference(parts, _interval(parts), _interval(mean_squares(by_subject[None])), better, identical)


def _difference(first: float, second: float, best: float | None) -> float:
    if best is not None and math.isnan(first) != math.isnan(second):
        first, second = (best if math.isnan(value) else value for value in (first, second))
    return first - second


def _interval(parts: Parts) -> tuple[float, float] | None:
    if parts.seeds == parts.subjects == 1:
        return None
    half = float(half_width(parts))
    return parts.mean - half, parts.mean + half


def fill(table: np.ndarray) -> np.ndarray:
    """Fill missing values (NaN) of a table so that the residual is smallest (Yates, 1933): row + column - mean.

    So values missing from one training add no difference between trainings or subjects.
    """
    missing = np.isnan(table)
    filled = np.where(missing, np.nanmean(table), table)
    for _ in range(200 if missing.any() else 0):
        additive = filled.mean(1, keepdims=True) + filled.mean(0, keepdims=True) - filled.mean()
        filled = np.where(missing, additive, table)
    return filled


def mean_squares(table: np.ndarray, imputed: int = 0) -> Parts:
    """Mean and mean squares of differences (seeds, subjects); a factor with one level has none, which counts as 0.

    ``imputed`` values have no residual, so each costs a degree of freedom.
    """
    n, m = table.shape
    mean, rows, columns = table.mean(), table.mean(1, keepdims=True), table.mean(0, keepdims=True)
    left = table - rows - columns + mean
    return Parts(
        float(mean),
        n,
        m,
        float(m * ((rows - mean) ** 2).sum() / max(1, n - 1)),
        float(n * ((columns - mean) ** 2).sum() / max(1, m - 1)),
        float((left**2).sum() / max(1, (n - 1) * (m - 1) - imputed)),
    )


def half_width(parts: Parts, alpha: float = ALPHA) -> Any:
    """Half the width of the interval at level 1 - ``alpha``; arrays of mean squares give an array."""
    error, share = _error_and_share(parts)
    return _quantile(share, parts, alpha) * error


def _error_and_share(parts: Parts) -> tuple[Any, Any]:
    """Standard error of the mean, and the share of the factor with fewer levels (seeds or subjects) in its square.

    The factor with fewer levels counts with its whole mean square, including the residual; the other only with its
    excess over the residual.
    """
    sides = (parts.of_seeds, parts.of_subjects)
    fewer, more = (np.asarray(side, float) for side in (sides if parts.seeds <= parts.subjects else sides[::-1]))
    square = fewer + np.maximum(0.0, more - parts.residual)
    share = np.divide(fewer, square, out=np.zeros_like(square), where=square > 0)
    return np.sqrt(square / (parts.seeds * parts.subjects)), share


def _quantile(share: Any, parts: Parts, alpha: float) -> Any:
    """Student's quantiles of seeds and subjects, averaged by their shares in the variance.

    Cochran and Cox ("Experimental designs", 1950) take the plain share. Here it has an exponent, found by numerical
    integration over all ratios of the variances: Satterthwaite's degrees of freedom, common elsewhere, cover 87 %
    instead of 95 % with two seeds, since a training variance that is small by chance gets many of them. The plain share
    covers up to 98 %. Below 5 % the exponent falls, since the same chance has more effect there.
    """
    freedom = sorted(max(1, levels - 1) for levels in (parts.seeds, parts.subjects))
    fewer, more = -special.stdtrit(freedom, alpha / 2)  # Student's, many times faster than scipy.stats.t
    exponent = min(3.0, 1 + freedom[0] / 5) * min(1.0, math.log(ALPHA) / math.log(alpha)) ** 1.25
    return more + (fewer - more) * share**exponent


def p_value(parts: Parts, shift: float = 0.0) -> float:
    """Two-sided p of a mean difference that is ``shift``: the alpha whose interval ends there."""
    if parts.seeds == parts.subjects == 1:
        return 1.0
    error, share = (float(value) for value in _error_and_share(parts))
    distance = abs(parts.mean - shift)
    if distance == 0 or error == 0:
        return float(distance == 0)

    def beyond(log_alpha: float) -> float:
        return float(_quantile(share, parts, math.exp(log_alpha))) - distance / error

    if beyond(-1e-9) >= 0:  # as good as no difference at all
        return 1.0
    lowest = -40.0
    return math.exp(lowest if beyond(lowest) < 0 else optimize.brentq(beyond, lowest, -1e-9))


def equivalence_p(parts: Parts, margin: float | None) -> float:
    """p of two one-sided tests (Schuirmann, 1987) against a difference of ``margin`` or more; 1 without a margin."""
    if margin is None or abs(parts.mean) >= margin:
        return 1.0
    return max(p_value(parts, margin), p_value(parts, -margin)) / 2


def judge(found: Sequence[Difference | None], margin: float | None, higher_is_better: bool) -> list[Verdict]:
    """Verdicts on all comparisons of a report; 5 % of reports, not of verdicts, have a false one.

    Each comparison asks two questions, whether there is a difference and whether it is below the margin. At most one of
    the two claims can be false, so a comparison enters Holm's (1979) procedure once, with the smaller p. If both hold,
    it is ``equivalent``: a difference below the margin does not matter. None gives ``incomplete`` and counts as a
    comparison.
    """
    questions = [(1.0, 1.0)] * len(found)
    for number, one in enumerate(found):
        if one is not None and not one.identical:
            questions[number] = (p_value(one.parts), equivalence_p(one.parts, margin))
    verdicts = [Verdict("incomplete" if one is None else "identical") for one in found]
    left, stopped = len(found), False
    for number in sorted(range(len(found)), key=lambda number: min(questions[number])):
        one, level = found[number], ALPHA / left
        if one is None or one.identical:
            continue
        different, equivalent = questions[number]
        stopped = stopped or min(different, equivalent) > level
        if stopped:
            verdicts[number] = Verdict("undecided", seeds_to_decide(one.parts, margin, level))
            continue
        sign = "better" if (one.parts.mean > 0) == higher_is_better else "worse"
        verdicts[number] = Verdict("equivalent" if equivalent <= level else sign)
        left -= 1
    return verdicts


def variances(parts: Parts) -> Spread:
    """Estimates of the three variances, at least zero; one seed or one subject cannot separate all of them."""
    of_seeds = max(0.0, (parts.of_seeds - parts.residual) / parts.subjects)
    of_subjects = max(0.0, (parts.of_subjects - parts.residual) / parts.seeds)
    return Spread(of_seeds, of_subjects, parts.residual)


def expected(spread: Spread, seeds: int, subjects: int, mean: float = 0.0) -> Parts:
    """Expected mean squares for these variances."""
    of_seeds = spread.residual + subjects * spread.seeds if seeds > 1 else 0.0
    of_subjects = spread.residual + seeds * spread.subjects if subjects > 1 else 0.0
    return Parts(mean, seeds, subjects, of_seeds, of_subjects, spread.residual if min(seeds, subjects) > 1 else 0.0)


def seeds_to_decide(parts: Parts, margin: float | None, level: float = ALPHA) -> int | None:
    """Number of seeds that would decide this difference with these variances at ``level``; None if 100 would not.

    With one seed the spread of trainings is unknown, so it is also None.
    """
    if parts.seeds == 1:
        return None
    spread = variances(parts)

    def decides(seeds: int) -> bool:
        one = expected(spread, seeds, parts.subjects, abs(parts.mean))
        within = margin is not None and one.mean + half_width(one, 2 * level) < margin
        return bool(within or one.mean > half_width(one, level))

    enough = bisect.bisect_left(range(MOST_SEEDS + 1), True, lo=parts.seeds + 1, key=decides)
    return enough if enough <= MOST_SEEDS else None


def draw(spread: Spread, seeds: int, subjects: int, draws: int = DRAWS, seed: int = 0) -> tuple[Parts, float]:
    """Mean squares of ``draws`` tables with these variances (mean 0), and the variance of their means.

    Mean and mean squares of normal tables are independent, so no table is drawn.
    """
    random, (mean, n, m, *squares) = np.random.default_rng(seed), expected(spread, seeds, subjects)
    freedom = (n - 1, m - 1, (n - 1) * (m - 1))
    ratios = [random.chisquare(f, draws) / f if f else np.zeros(draws) for f in freedom]
    drawn = [square * ratio for square, ratio in zip(squares, ratios, strict=True)]
    return Parts(mean, n, m, *drawn), spread.seeds / n + spread.subjects / m + spread.residual / (n * m)


def power(difference: float, spread: Spread, seeds: int, subjects: int, level: float = ALPHA) -> float:
    """How often a true difference is detected at ``level`` (0.05 for one comparison); for 0, how often falsely."""
    drawn, variance = draw(spread, seeds, subjects)
    half, error = half_width(drawn, level), math.sqrt(variance)
    return float(np.mean(stats.norm.sf((half - difference) / error) + stats.norm.cdf((-half - difference) / error)))


def detectable(spread: Spread, seeds: int, subjects: int, level: float = ALPHA) -> float:
    """The smallest true difference that is found in 80 % of comparisons.

    Raises:
        ValueError: there is one seed: its interval leaves out the spread of trainings, and false verdicts are not
            power.
    """
    if seeds < 2:
        raise ValueError("one seed says nothing about other trainings")
    error = math.sqrt(draw(spread, seeds, subjects, 1)[1])
    if error == 0:
        return 0.0
    high = error
    while power(high, spread, seeds, subjects, level) < POWER:
        high *= 2
    return optimize.brentq(lambda x: power(x, spread, seeds, subjects, level) - POWER, 0.0, high, xtol=error / 1000)


def mean_and_spread(scores: Scores) -> tuple[float, float | None, dict[int, float]]:
    """Mean over seeds of the means over subjects, their standard deviation (None with one seed), and all means."""
    seeds: dict[int, list[float]] = {}
    for (seed, _), value in scores.items():
        if math.isfinite(value):
            seeds.setdefault(seed, []).append(value)
    means = {seed: float(np.mean(values)) for seed, values in sorted(seeds.items())}
    if not means:
        return math.nan, None, {}
    values = list(means.values())
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None, means
