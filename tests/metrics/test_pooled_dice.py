from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from common.metrics import PooledDice


@pytest.fixture
def volumes():
    """Three volumes of different sizes, predictions of four classes, of which the last is nowhere."""
    generator = torch.Generator().manual_seed(0)
    pairs = [torch.randint(3, (2, side, 4, 5), generator=generator) for side in (2, 7, 30)]
    return [[F.one_hot(image, 4).movedim(-1, 0).float() for image in pair] for pair in pairs]


def dice(prediction, truth):
    return 2 * float((prediction * truth).sum()) / float(prediction.sum() + truth.sum())


def measured(metric, volumes):
    for prediction, truth in volumes:
        metric([prediction], [truth])
    return float(metric.aggregate())


def test_pooled_is_that_of_one_volume_made_of_all(volumes):
    joint = [torch.cat([pair[side] for pair in volumes], dim=1) for side in (0, 1)]
    expected = [dice(joint[0][c], joint[1][c]) for c in range(3)]
    assert measured(PooledDice(), volumes) == pytest.approx(sum(expected[1:]) / 2, abs=1e-12)
    assert measured(PooledDice([0, 2]), volumes) == pytest.approx((expected[0] + expected[2]) / 2, abs=1e-12)
    assert math.isnan(measured(PooledDice([3]), volumes))


def test_pooled_counts_large_volumes_exactly():
    ones = torch.ones(1, 2, 2**13, 2**12)
    assert measured(PooledDice([0]), [[ones[0], ones[0]]]) == 1


def test_pooled_of_each_class(volumes):
    metric = PooledDice(per_class=True)
    measured_mean = measured(PooledDice(), volumes)
    for prediction, truth in volumes:
        metric([prediction], [truth])
    found = metric.aggregate()
    joint = [torch.cat([pair[side] for pair in volumes], dim=1) for side in (0, 1)]
    assert found.shape == (3,) and found[2].isnan()
    assert found[:2].tolist() == pytest.approx([dice(joint[0][c], joint[1][c]) for c in (1, 2)], abs=1e-12)
    assert found.nanmean().item() == pytest.approx(measured_mean, abs=1e-12)
    assert metric.by_class() == pytest.approx(dict(enumerate(found.tolist(), start=1)), nan_ok=True)
    chosen = PooledDice([2, 0])
    measured(chosen, volumes)
    assert chosen.by_class() == pytest.approx({c: dice(joint[0][c], joint[1][c]) for c in (2, 0)}, abs=1e-12)
