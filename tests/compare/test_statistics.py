from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from scipy import stats

from common.compare.statistics import (
    Parts,
    Spread,
    best_score,
    compare_arms,
    detectable,
    draw,
    equivalence_p,
    expected,
    fill,
    half_width,
    judge,
    mean_and_spread,
    mean_squares,
    p_value,
    power,
    seeds_to_decide,
)

# Variances (seeds, subjects, residual) from trainings that hardly differ to such that decide everything.
RATIOS = [
    (0, 0, 1),
    (0, 0.3, 1),
    (0, 1, 0.01),
    (0.01, 1, 0.1),
    (0.03, 1, 0.03),
    (0.1, 0.1, 1),
    (0.1, 1, 0.1),
    (0.3, 1, 1),
    (1, 1, 1),
    (1, 0.1, 0.1),
    (1, 0, 0.01),
]


def scores(table):
    return {(seed, f"s{i:02d}"): float(v) for seed, row in enumerate(table) for i, v in enumerate(row)}


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def tables(spread, seeds, subjects, count, mean=0.0, seed=0):
    random = np.random.default_rng(seed)
    parts = [(seeds, 1), (1, subjects), (seeds, subjects)]
    for _ in range(count):
        yield mean + sum(math.sqrt(v) * random.normal(size=shape) for v, shape in zip(spread, parts, strict=True))


def difference(table):
    return compare_arms(scores(table), scores(0 * table), True)


@pytest.mark.parametrize("subjects", [6, 20, 100])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_coverage(seeds, subjects):
    """93 to 97 %, whichever variance is the largest; with two or three seeds and six subjects it may cover more."""
    covered = [1 - power(0.0, Spread(*spread), seeds, subjects) for spread in RATIOS]
    assert min(covered) >= 0.928
    assert max(covered) <= (0.982 if subjects == 6 else 0.975)


def test_coverage_of_drawn_tables_is_that_of_drawn_mean_squares():
    spread = Spread(0.3, 1, 1)
    drawn = [mean_squares(table) for table in tables(spread, 2, 20, 1500)]
    missed = np.mean([abs(one.mean) > half_width(one) for one in drawn])
    assert missed == pytest.approx(power(0.0, spread, 2, 20), abs=0.018)
    parts, variance = draw(spread, 2, 20)
    for name in ("of_seeds", "of_subjects", "residual"):
        assert np.mean([getattr(one, name) for one in drawn]) == pytest.approx(getattr(parts, name).mean(), rel=0.1)
    assert np.var([one.mean for one in drawn]) == pytest.approx(variance, rel=0.12)


def test_mean_squares_against_loops():
    table = noise(3, 8)
    rows, columns, mean = table.mean(1), table.mean(0), table.mean()
    found = mean_squares(table)
    assert (found.mean, found.seeds, found.subjects) == (pytest.approx(mean), 3, 8)
    assert found.of_seeds == pytest.approx(8 * statistics.variance(rows))
    assert found.of_subjects == pytest.approx(3 * statistics.variance(columns))
    left = sum((table[s, i] - rows[s] - columns[i] + mean) ** 2 for s in range(3) for i in range(8))
    assert found.residual == pytest.approx(left / 14)


def test_the_ends_are_students_intervals():
    """Of one seed the paired t over subjects; of a metric without subjects, or subjects without spread, over seeds."""
    one = noise(1, 9)
    paired = stats.ttest_1samp(one[0], 0)
    assert p_value(mean_squares(one)) == pytest.approx(paired.pvalue, rel=1e-6)
    assert half_width(mean_squares(one)) == pytest.approx(stats.t.ppf(0.975, 8) * one.std(ddof=1) / 3)
    for table in (noise(4, 1), np.repeat(noise(4, 1), 5, axis=1)):
        paired = stats.ttest_1samp(table[:, 0], 0.2)
        assert p_value(mean_squares(table), 0.2) == pytest.approx(paired.pvalue, rel=1e-6)


def test_p_is_the_level_whose_interval_ends_at_zero():
    for seed in range(5):
        parts = mean_squares(0.5 + noise(3, 7, seed=seed))
        assert half_width(parts, p_value(parts)) == pytest.approx(abs(parts.mean), rel=1e-6)


def test_holms_procedure_against_its_definition():
    found = [difference(mean + 0.01 * noise(3, 10, seed=n)) for n, mean in enumerate((0.3, 0.02, 0.0, -0.06))]
    by_p = sorted((p_value(one.parts), n) for n, one in enumerate(found))
    expected_texts = ["undecided"] * 4
    for step, (p, n) in enumerate(by_p):
        if p > 0.05 / (4 - step):
            break
        expected_texts[n] = "better" if found[n].parts.mean > 0 else "worse"
    assert [verdict.text for verdict in judge(found, None, True)] == expected_texts
    assert {"better", "worse", "undecided"} == set(expected_texts)
    mirrored = [verdict.text for verdict in judge(found, None, False)]
    assert mirrored == [{"better": "worse", "worse": "better"}.get(text, text) for text in expected_texts]


def test_equivalence_is_two_one_sided_tests():
    parts = mean_squares(0.002 + 0.001 * noise(1, 12))
    sides = [
        stats.ttest_1samp(0.002 + 0.001 * noise(1, 12)[0], at, alternative=way).pvalue
        for at, way in ((-0.01, "greater"), (0.01, "less"))
    ]
    assert equivalence_p(parts, 0.01) == pytest.approx(max(sides), rel=1e-6)
    assert equivalence_p(parts, 0.001) == 1.0 == equivalence_p(parts, None)
    close = difference(0.002 + 0.0003 * noise(3, 12))  # surely above zero, and surely below the margin
    assert judge([close], 0.01, True)[0].text == "equivalent" and judge([close], None, True)[0].text == "better"


def test_a_report_of_equal_arms_has_a_false_verdict_in_five_percent():
    """Eight arms against one baseline, whose luck all share."""
    random, false = np.random.default_rng(1), 0
    for _ in range(300):
        arms = 0.01 * random.normal(size=(9, 3, 1)) + 0.02 * random.normal(size=(9, 3, 12))
        found = [difference(arm - arms[0]) for arm in arms[1:]]
        false += any(verdict.text in ("better", "worse") for verdict in judge(found, None, True))
    assert false <= 0.075 * 300


def test_what_is_missing_is_not_taken_for_a_difference():
    """The best subject lacks in the best seed: rows and columns that add up are filled as they would have been."""
    table = np.array([[0.0], [0.1], [0.2]]) + np.linspace(0, 1, 6)
    gaps = table.copy()
    gaps[2, 5] = gaps[0, 1] = np.nan
    assert np.allclose(fill(gaps), table)
    arm = scores(gaps)
    arm[7, "s02"] = 5.0  # a seed that the baseline lacks
    found = compare_arms(arm, scores(0 * table), True)
    assert found.parts.mean == pytest.approx(table.mean()) and found.parts.seeds == 3
    assert compare_arms(arm, {(9, "s00"): 1.0}, True) is None


def test_an_invented_structure_costs_even_beside_a_missing_score():
    """Five of ten scans lack the structure. One arm draws it there, the other rightly does not (NaN)."""
    sick = {(seed, f"s{number}"): 0.9 for seed in range(3) for number in range(5)}
    healthy = [(seed, f"h{number}") for seed in range(3) for number in range(5)]
    invents, correct = {**sick, **dict.fromkeys(healthy, 0.0)}, {**sick, **dict.fromkeys(healthy, math.nan)}
    found = compare_arms(invents, correct, True, best_score("val_mean_dice"))
    assert found.parts.mean == pytest.approx(-0.5) and found.parts.subjects == 10 and not found.identical
    assert found.interval[1] < 0
    # a distance: the diagonal against 0 mm
    far, near = {**sick, **dict.fromkeys(healthy, 250.0)}, {**sick, **dict.fromkeys(healthy, math.nan)}
    assert compare_arms(far, near, False, best_score("val_hd95")).parts.mean == pytest.approx(125)
    # in different seeds
    turns = {key: math.nan if key[0] else 0.0 for key in healthy}
    others = {key: 0.0 if key[0] else math.nan for key in healthy}
    found = compare_arms({**sick, **turns}, {**sick, **others}, True, 1.0)
    assert found.parts.subjects == 10 and found.parts.mean == pytest.approx(0.5 * (2 - 1) / 3)
    # both right: nothing to compare; no rule: left out
    assert compare_arms(correct, correct, True, 1.0).parts.subjects == 5
    assert compare_arms(invents, correct, True).parts.subjects == 5


@pytest.mark.parametrize(
    ("metric", "best"),
    [
        ("val_mean_dice", 1.0),
        ("val_nsd", 1.0),
        ("val_hd95", 0.0),
        ("val_assd", 0.0),
        ("val_voe", 0.0),
        ("val_mae", None),
        ("val_auc", None),
    ],
)
def test_best_scores(metric, best):
    assert best_score(metric) == best


def test_seeds_that_decide_do_and_one_fewer_does_not():
    spread, level = Spread(0.01**2, 0.01**2, 0.01**2), 0.025
    parts = expected(spread, 3, 20, 0.012)
    needed = seeds_to_decide(parts, None, level)
    assert 3 < needed < 30

    def decides(seeds):
        return half_width(expected(spread, seeds, 20), level) < 0.012

    assert decides(needed) and not decides(needed - 1)
    assert judge([difference(0 * noise(2, 6) + 1e-3 * noise(2, 6))], None, True)[0].text == "undecided"
    # With as few subjects as this, no number of trainings tells.
    assert seeds_to_decide(expected(Spread(1e-8, 0.1**2, 1e-8), 3, 6, 0.012), None) is None
    # None is better, which with more seeds is within the margin.
    assert seeds_to_decide(expected(spread, 3, 200, 0.0), 0.01) > 3


def test_a_difference_is_found_as_often_as_said():
    spread = Spread(0.01**2, 0.02**2, 0.02**2)
    least = detectable(spread, 3, 20)
    drawn = [mean_squares(table) for table in tables(spread, 3, 20, 1000, mean=least)]
    assert np.mean([one.mean > half_width(one) for one in drawn]) == pytest.approx(0.8, abs=0.04)
    assert detectable(spread, 3, 20, 0.05 / 6) > least > detectable(spread, 5, 20)


def test_verdicts_of_what_cannot_be_judged():
    table = noise(3, 8)
    same = compare_arms(scores(table), scores(table), True)
    single = compare_arms({(0, "all"): 0.7}, {(0, "all"): 0.5}, True)
    texts = [verdict.text for verdict in judge([same, None, single], 0.01, True)]
    assert texts == ["identical", "incomplete", "undecided"]
    assert same.parts.mean == 0 and single.interval is None
    constant = difference(np.full((3, 8), 0.25))  # no spread at all
    assert judge([constant], 0.01, True)[0].text == "better" and constant.interval == (0.25, 0.25)


def test_three_seeds_of_one_sign_are_not_enough():
    found = difference(np.array([[0.001], [0.02], [0.012]]) + 0.001 * noise(3, 20))
    assert found.over_subjects[0] > 0 and judge([found], None, True)[0].text == "undecided"


def test_arrays_of_mean_squares_give_each_its_width():
    parts, _ = draw(Spread(0.1, 1, 1), 3, 20, draws=5)
    one = Parts(0.0, 3, 20, parts.of_seeds[2], parts.of_subjects[2], parts.residual[2])
    assert half_width(parts)[2] == pytest.approx(half_width(one))


def test_mean_and_spread():
    mean, spread, seeds = mean_and_spread({(0, "a"): 1.0, (0, "b"): 3.0, (1, "a"): 4.0, (1, "b"): math.nan})
    assert mean == 3.0 and seeds == {0: 2.0, 1: 4.0} and spread == pytest.approx(math.sqrt(2))
    assert mean_and_spread({(0, "a"): 1.0})[1] is None
    assert math.isnan(mean_and_spread({})[0])


def test_differences_that_cancel_are_no_difference():
    """Their mean is a rounding error, not 0."""
    parts = mean_squares(np.array([[0.1, 0.2, 0.3], [-0.3, -0.1, -0.2]]))
    assert 0 < abs(parts.mean) < 1e-15 and p_value(parts) == 1.0


def test_one_seed_has_no_least_difference_and_equal_runs_find_any():
    with pytest.raises(ValueError, match="one seed"):
        detectable(Spread(0.01, 0.01, 0.01), 1, 20)
    assert detectable(Spread(0.0, 0.0, 0.0), 2, 20) == 0.0


def test_imputed_values_are_no_degrees_of_freedom():
    """A fifth of a table is missing: the residual is the squares that are there, by the freedom that they have."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(300):
        table = random.normal(size=(3, 10))
        kept = scores(table)
        for key in random.choice(len(kept), 6, replace=False):
            kept.pop(list(scores(table))[key])
        found.append(compare_arms(kept, dict.fromkeys(kept, 0.0), True).parts.residual)
    assert np.mean(found) == pytest.approx(1.0, abs=0.06)
