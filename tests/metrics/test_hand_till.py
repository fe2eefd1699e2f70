from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from common.metrics import HandTillAUC


def made_up(seed=0, count=60, classes=3, ties=False):
    """Probabilities that tell a little, and classes of unequal frequency that all occur."""
    generator = torch.Generator().manual_seed(seed)
    share = torch.arange(1.0, classes + 1)
    truth = torch.multinomial(share, count, replacement=True, generator=generator)
    truth[:classes] = torch.arange(classes)
    logits = torch.randn(count, classes, generator=generator)
    logits[torch.arange(count), truth] += 0.7
    scores = logits.softmax(1)
    if ties:  # eighths, whose sum is exactly 1
        draws = torch.multinomial(scores, 8, replacement=True, generator=generator)
        scores = torch.nn.functional.one_hot(draws, classes).sum(1) / 8
    return scores, truth


def slow(scores, truth):
    """Equations 3 and 7 of Hand and Till, from sums of ranks."""
    there = truth.unique().tolist()

    def area(i, j):
        """That a random member of class i has a higher probability of i than one of class j."""
        rows = (truth == i) | (truth == j)
        ranks = rankdata(scores[rows, i].double().numpy())
        mine = (truth[rows] == i).numpy()
        n_i, n_j = int(mine.sum()), int((~mine).sum())
        return (ranks[mine].sum() - n_i * (n_i + 1) / 2) / (n_i * n_j)

    pairs = [(area(i, j) + area(j, i)) / 2 for i, j in combinations(there, 2)]
    return 2 / (len(there) * (len(there) - 1)) * sum(pairs)


def value(scores, truth, batch=17):
    metric = HandTillAUC()
    for start in range(0, len(scores), batch):
        metric(scores[start : start + batch], truth[start : start + batch])
    return metric.aggregate()


@pytest.mark.parametrize("classes", [3, 5])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_the_rank_formula_and_sklearns_one_against_one(seed, ties, classes):
    scores, truth = made_up(seed, classes=classes, ties=ties)
    found = value(scores, truth)
    assert found == pytest.approx(slow(scores, truth), abs=1e-9)
    expected = roc_auc_score(truth, scores, multi_class="ovo", average="macro")
    assert found == pytest.approx(expected, abs=1e-9) and 0.5 < found < 0.95


def test_two_classes_are_the_usual_area():
    scores, truth = made_up(classes=2)
    assert value(scores, truth) == pytest.approx(roc_auc_score(truth, scores[:, 1]))


def test_from_1_when_told_apart_to_0_when_confused():
    truth = torch.tensor([0, 0, 1, 1, 2, 2])
    right = torch.nn.functional.one_hot(truth, 3).float()
    assert value(right, truth) == 1 and value(1 - right, truth) == 0
    assert value(torch.full((6, 3), 1 / 3), truth) == 0.5


def test_the_frequency_of_classes_has_no_weight():
    scores, truth = made_up()
    often = torch.cat([torch.arange(60), (truth == 2).nonzero()[:, 0].repeat(4)])
    assert value(scores[often], truth[often]) == pytest.approx(value(scores, truth))


def test_logits_serve_where_each_class_is_transformed_increasingly():
    scores, truth = made_up()
    logits = (scores.double() / (1 - scores.double())).log() * torch.tensor([1.0, 2.0, 0.5]) + torch.arange(3)
    assert value(logits, truth) == pytest.approx(value(scores, truth))


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_missing_classes_are_left_out_and_logged(caplog, missing):
    scores, truth = made_up()
    scores, truth = scores[truth != missing], truth[truth != missing]
    found = value(scores, truth)
    assert found == pytest.approx(slow(scores, truth)) and 0.5 < found < 1
    assert "the truth has 2 of 3 classes" in caplog.text


def test_a_single_class_has_no_area(caplog):
    assert math.isnan(value(torch.rand(5, 3), torch.ones(5)))
    assert "the truth has 1 of 3 classes" in caplog.text


def test_all_classes_there_is_not_logged(caplog):
    value(*made_up())
    assert not caplog.records


@pytest.mark.parametrize("shape", [(60,), (60, 1)])
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_shapes_types_lists_and_batches(shape, dtype):
    scores, truth = made_up()
    labels = truth.reshape(shape).to(dtype)
    expected = slow(scores, truth)
    assert value(scores, labels) == value(scores, labels, batch=60) == pytest.approx(expected)
    metric = HandTillAUC()
    metric(list(scores), list(labels))
    assert metric.aggregate() == pytest.approx(expected)


def test_reset_forgets():
    metric, (scores, truth) = HandTillAUC(), made_up()
    metric(1 - scores, truth)
    metric.reset()
    metric(scores, truth)
    assert metric.aggregate() == pytest.approx(slow(scores, truth))
