"""Measure by simulation how reliable the verdicts of `common.compare` are: the tables of docs/compare.md.

    python experiments/compare_verdicts.py

Scores are drawn with known variances of trainings, subjects and residual. It prints how often the 95 % interval covers
the true difference, how many reports without any difference have a false verdict (and, with differences of exactly the
margin, a false "equivalent"), and how often a true difference is found. It takes some minutes on one core.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from common.compare.statistics import Spread, compare_arms, judge, power

# Variances (seeds, subjects, residual): all combinations on a grid in which one of them is 1.
GRID = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
RATIOS = [Spread(a, b, c) for a in GRID for b in GRID for c in GRID if max(a, b, c) == 1]
USUAL = Spread(0.01**2, 0.03**2, 0.02**2)
MARGIN = 0.01
REPORTS = 1000


def main() -> None:
    print("coverage of the interval of 95 %, least to most over", len(RATIOS), "ratios of the variances")
    print("| seeds | 6 subjects | 20 subjects | 100 subjects |\n|---|---|---|---|")
    for seeds in (2, 3, 5):
        cells = []
        for subjects in (6, 20, 100):
            found = [100 * (1 - power(0.0, spread, seeds, subjects)) for spread in RATIOS]
            cells.append(f"{min(found):.1f} to {max(found):.1f} %")
        print(f"| {seeds} | {' | '.join(cells)} |")
    print("\nreports of comparisons with one baseline: a false verdict with no difference, one with all at the margin,")
    print("and, at a level of 5 % over the report, the share of true differences of 0.02 and of 0.05 that are found")
    print("| comparisons | seeds | subjects | none | margin | 0.02 | 0.05 |\n|---|---|---|---|---|---|---|")
    for comparisons in (1, 6, 18):
        for seeds, subjects in ((2, 20), (3, 20), (5, 20), (3, 100), (5, 100)):
            false = [100 * reports(comparisons, seeds, subjects, true, wrong) for true, wrong in FALSE.items()]
            right = [100 * power(true, USUAL, seeds, subjects, 0.05 / comparisons) for true in (0.02, 0.05)]
            cells = [f"{value:.1f} %" for value in false] + [f"{value:.0f} %" for value in right]
            print(f"| {comparisons} | {seeds} | {subjects} | {' | '.join(cells)} |", flush=True)


FALSE = {0.0: ("better", "worse"), MARGIN: ("equivalent", "worse")}


def reports(comparisons: int, seeds: int, subjects: int, true: float, wrong: tuple[str, ...]) -> float:
    """Return the share of reports with a wrong verdict. All arms share one baseline, and so its luck."""
    random = np.random.default_rng(0)
    shapes = ((seeds, 1), (1, subjects), (seeds, subjects))
    # Each arm contributes half of a difference's variance.
    sizes = [(variance / 2) ** 0.5 for variance in USUAL]
    count = 0
    for _ in range(REPORTS):
        arms = [
            sum(size * random.normal(size=shape) for size, shape in zip(sizes, shapes, strict=True))
            for _ in range(comparisons + 1)
        ]
        found = [compare_arms(scores(true + arm), scores(arms[0]), True) for arm in arms[1:]]
        count += any(verdict.text in wrong for verdict in judge(found, MARGIN, True))
    return count / REPORTS


def scores(table: np.ndarray) -> dict[tuple[int, str], float]:
    return {(seed, str(subject)): float(value) for (seed, subject), value in np.ndenumerate(table)}


if __name__ == "__main__":
    main()
