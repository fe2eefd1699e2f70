"""Compare two arms by a paired t-test over the seeds, as papers do (TransSeg, section 4.2: seeds 1234, 5678, 910).

The test uses one number per seed, the mean over all test scans, so it says nothing about other scans. With three seeds
it has two degrees of freedom. The report of ``common.compare`` has intervals that account for both seeds and scans, and
corrects for the number of comparisons.

    python experiments/paired_seeds.py runs/bcv centring centring_1
"""

from __future__ import annotations

import csv
from pathlib import Path

import fire
import numpy as np
from scipy import stats


def main(folder: str, first: str, second: str, metric: str | None = None, labels: int | None = None) -> str:
    """Return a line with both means, their difference, and its one-sided and two-sided p-values.

    Raises:
        ValueError: the arms share less than two seeds, or have scores with several numbers of labels and none is given.
    """
    with (Path(folder) / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["structure"] == "mean"]
    metric = metric or next(row["metric"] for row in rows)
    rows = [row for row in rows if row["metric"] == metric and (labels is None or int(row["labels"]) == labels)]
    counts = sorted({int(row["labels"]) for row in rows if row["arm"] in (first, second)})
    if len(counts) > 1:
        raise ValueError(f"{folder} has scores with {', '.join(map(str, counts))} labels: choose with --labels.")
    scores = {arm: {row["seed"]: float(row["value"]) for row in rows if row["arm"] == arm} for arm in (first, second)}
    seeds = sorted(set(scores[first]) & set(scores[second]), key=int)
    if len(seeds) < 2:
        raise ValueError(f"{folder} has {len(seeds)} seeds of both {first} and {second}: two or more are needed.")
    values = np.array([[scores[arm][seed] for seed in seeds] for arm in (first, second)])
    found = stats.ttest_rel(*values)
    means = " and ".join(
        f"{arm} {mean:.4f} ± {spread:.4f}"
        for arm, mean, spread in zip((first, second), values.mean(1), values.std(1, ddof=1), strict=True)
    )
    one_side = found.pvalue / 2 if found.statistic > 0 else 1 - found.pvalue / 2
    return (
        f"{metric}, seeds {', '.join(seeds)}: {means}; difference {values[0].mean() - values[1].mean():+.4f}, "
        f"p {one_side:.3f} that {first} is not larger, {found.pvalue:.3f} on both sides"
    )


if __name__ == "__main__":
    fire.Fire(main)
