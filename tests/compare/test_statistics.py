from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from common.compare.statistics import bootstrap_interval, compare_arms, interval_with_seeds, mean_and_spread


def scores(table):
    return {(seed, f"s{i:02d}"): float(v) for seed, row in enumerate(table) for i, v in enumerate(row)}


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def test_difference_against_loops():
    baseline, arm = 0.5 + 0.1 * noise(3, 8), 0.52 + 0.1 * noise(3, 8, seed=1)
    found = compare_arms(scores(arm), scores(baseline), higher_is_better=True)
    by_subject = [statistics.mean(arm[s][i] - baseline[s][i] for s in range(3)) for i in range(8)]
    by_seed = [statistics.mean(arm[s][i] - baseline[s][i] for i in range(8)) for s in range(3)]
    assert found.mean == pytest.approx(statistics.mean(by_subject))
    assert (found.seeds, found.subjects) == (3, 8)
    assert found.better == pytest.approx(sum(d > 0 for d in by_subject) / 8)
    v_seed, v_subject = statistics.variance(by_seed) / 3, statistics.variance(by_subject) / 8
    freedom = (v_seed + v_subject) ** 2 / (v_seed**2 / 2 + v_subject**2 / 7)
    half = (found.with_seeds[1] - found.with_seeds[0]) / 2
    assert sum(found.with_seeds) / 2 == pytest.approx(found.mean)
    # Student's quantile by integrating its density
    t = half / math.sqrt(v_seed + v_subject)
    x = np.linspace(-t, t, 20001)
    log = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - 0.5 * math.log(freedom * math.pi)
    density = np.exp(log - (freedom + 1) / 2 * np.log1p(x**2 / freedom))
    assert np.trapezoid(density, x) == pytest.approx(0.95, abs=1e-4)


def test_bootstrap_against_loops():
    values = noise(12)
    low, high = bootstrap_interval(values)
    draw = np.random.default_rng(5)
    means = sorted(statistics.mean(draw.choice(values, 12)) for _ in range(4000))
    assert low == pytest.approx(means[100], abs=0.03) and high == pytest.approx(means[3900], abs=0.03)
    assert bootstrap_interval(values) == (low, high)
    assert bootstrap_interval(values[:5]) is None


def test_equal_arms_with_noise_of_their_own_are_told_apart_as_often_as_stated():
    """No difference, but each training has its luck, which all subjects share: what only seeds can tell."""
    draw = np.random.default_rng(0)
    covered = {"with_seeds": 0, "over_subjects": 0}
    runs = 1000
    for _ in range(runs):
        table = draw.normal(0, 0.03, size=(3, 1)) + draw.normal(0, 0.03, size=(3, 20))
        for name, interval in (
            ("with_seeds", interval_with_seeds(table)),
            ("over_subjects", bootstrap_interval(table.mean(0))),
        ):
            covered[name] += interval[0] <= 0 <= interval[1]
    assert covered["with_seeds"] >= 0.9 * runs
    assert covered["over_subjects"] < 0.7 * runs


def test_a_clear_difference_is_found_and_its_direction_follows_the_metric():
    baseline = 0.5 + 0.02 * noise(3, 10)
    arm = baseline + 0.1 + 0.005 * noise(3, 10, seed=1)
    assert compare_arms(scores(arm), scores(baseline), True).verdict == "better"
    assert compare_arms(scores(arm), scores(baseline), False).verdict == "worse"
    assert compare_arms(scores(arm), scores(baseline), False).better == 0
    assert compare_arms(scores(baseline), scores(arm), False).verdict == "better"


def test_three_seeds_of_one_sign_are_not_enough():
    table = np.array([[0.001], [0.02], [0.012]]) + 0.001 * noise(3, 20)
    found = compare_arms(scores(table), scores(np.zeros((3, 20))), True)
    assert found.over_subjects[0] > 0 and found.verdict == "no difference found"


def test_what_is_missing_is_left_out_in_pairs():
    arm, baseline = scores(1 + noise(2, 8)), scores(noise(2, 8, seed=1))
    arm[0, "s00"] = math.nan
    del baseline[1, "s01"]
    arm[7, "s02"] = 5.0  # a seed that the baseline lacks
    found = compare_arms(arm, baseline, True)
    pairs = [(s, f"s{i:02d}") for s in range(2) for i in range(8)]
    pairs = [pair for pair in pairs if pair not in [(0, "s00"), (1, "s01")]]
    by_subject: dict[str, list[float]] = {}
    for pair in pairs:
        by_subject.setdefault(pair[1], []).append(arm[pair] - baseline[pair])
    assert found.mean == pytest.approx(statistics.mean(statistics.mean(v) for v in by_subject.values()))
    assert found.seeds == 2
    assert compare_arms(arm, {(9, "s00"): 1.0}, True) is None


def test_identical_few_and_one_seed():
    table = noise(3, 8)
    same = compare_arms(scores(table), scores(table), True)
    assert same.verdict == "identical" and same.mean == 0 and same.with_seeds == (0.0, 0.0)
    few = compare_arms(scores(noise(1, 3)), scores(noise(1, 3, seed=1)), True)
    assert few.verdict == "too few subjects" and few.over_subjects is None and few.with_seeds is None
    one = compare_arms(scores(table[:1] + 9), scores(table[:1]), True)
    assert one.verdict == "better between these two models" and one.with_seeds is None


def test_a_metric_of_the_whole_test_part_is_judged_by_its_seeds():
    values = np.array([[0.03], [0.05], [0.04]])
    low, high = interval_with_seeds(values)
    assert (low + high) / 2 == pytest.approx(0.04)
    assert (high - low) / 2 == pytest.approx(4.3027 * 0.01 / math.sqrt(3), rel=1e-3)
    found = compare_arms(scores(values), scores(0 * values), True)
    assert found.verdict == "better" and found.over_subjects is None


def test_mean_and_spread():
    mean, spread, seeds = mean_and_spread({(0, "a"): 1.0, (0, "b"): 3.0, (1, "a"): 4.0, (1, "b"): math.nan})
    assert mean == 3.0 and seeds == {0: 2.0, 1: 4.0} and spread == pytest.approx(math.sqrt(2))
    assert mean_and_spread({(0, "a"): 1.0})[1] is None
    assert math.isnan(mean_and_spread({})[0])
