from __future__ import annotations

import pytest
import torch

from common.metrics import ClassAccuracy

SCORES = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3], [0.3, 0.3, 0.4], [-2.0, -1.0, -3.0], [0.0, 9.0, 1.0]])
TRUTH = torch.tensor([1, 2, 2, 1, 0])
RIGHT = [1.0, 0.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("shape", [(5,), (5, 1)])
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_the_share_and_each_sample(shape, dtype):
    metric, truth = ClassAccuracy(), TRUTH.reshape(shape).to(dtype)
    found = metric(SCORES, truth)
    assert found.tolist() == [[x] for x in RIGHT]
    assert metric.aggregate() == pytest.approx(3 / 5)


def test_samples_count_alike_whatever_the_batches():
    metric = ClassAccuracy()
    metric(SCORES[:4], TRUTH[:4])
    metric(SCORES[4:], TRUTH[4:])
    assert metric.aggregate() == pytest.approx(3 / 5)  # and not the mean of 3/4 and 0
    metric.reset()
    metric(list(SCORES[:2]), list(TRUTH[:2]))
    assert metric.aggregate() == pytest.approx(1 / 2)
