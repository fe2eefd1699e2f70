from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from common.metrics import CalibrationSlope


def slope(predicted, true, batch=7):
    metric = CalibrationSlope()
    for start in range(0, len(predicted), batch):
        metric(predicted[start : start + batch], true[start : start + batch])
    return metric.aggregate()


def ages(count=30):
    generator = torch.Generator().manual_seed(0)
    true = 20 + 60 * torch.rand(count, 1, generator=generator)
    return 0.6 * true + 18 + 4 * torch.randn(count, 1, generator=generator), true


@pytest.mark.parametrize("batch", [1, 7, 30])
def test_numpys_line_of_the_truth_on_the_prediction(batch):
    predicted, true = ages()
    expected = np.polyfit(predicted[:, 0].numpy(), true[:, 0].numpy(), 1)[0]
    assert slope(predicted, true, batch) == pytest.approx(expected, rel=1e-4)
    # The line of the prediction on the truth is another one.
    assert slope(true, predicted) != pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(("factor", "expected"), [(1.0, 1.0), (2.0, 0.5), (0.5, 2.0), (-1.0, -1.0)])
def test_below_1_where_predictions_spread_too_far(factor, expected):
    _, true = ages()
    assert slope(50 + factor * (true - 50), true) == pytest.approx(expected, rel=1e-4)


def test_a_shift_of_the_predictions_does_not_matter():
    predicted, true = ages()
    assert slope(predicted + 1000, true) == pytest.approx(slope(predicted, true), rel=1e-3)


def test_constant_predictions_have_no_slope():
    assert math.isnan(slope(torch.full((5, 1), 44.0), ages(5)[1]))
    assert math.isnan(slope(*ages(1)))


def test_lists_and_reset():
    predicted, true = ages()
    metric = CalibrationSlope()
    metric(true, predicted)
    metric.reset()
    metric(list(predicted), list(true))
    assert metric.aggregate() == pytest.approx(slope(predicted, true))
