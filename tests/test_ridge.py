from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from common.ridge import ridge


def draw(rows=12, columns=6, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("columns", [4, 30])
def test_against_a_fit_for_each_row(columns):
    """Of all penalties that it may take, the best one's predictions, row by row, and its coefficients."""
    features, target = 3 * draw(12, columns) + 5, draw(12, 2, seed=1)
    x = ((features - features.mean(0)) / features.std(0, correction=0)).numpy()
    power = np.linalg.svd(x, compute_uv=False) ** 2
    candidates = []
    for exponent in range(-4, 5):
        model = Ridge(alpha=10.0**exponent * power.mean())
        made = np.empty((12, 2))
        for row in range(12):
            rest = np.arange(12) != row
            # the intercept is of the rows that are left, as if the features had been centred anew
            made[row] = model.fit(x[rest], target[rest].numpy()).predict(x[row : row + 1])
        whole = Ridge(alpha=model.alpha).fit(x, target.numpy())
        candidates.append((((made - target.numpy()) ** 2).sum(), made, whole))
    _, expected, whole = min(candidates, key=lambda candidate: candidate[0])
    found = ridge(features, target)
    np.testing.assert_allclose(found.left_out.numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(found.weight.numpy(), whole.coef_, atol=1e-8)
    np.testing.assert_allclose(found.intercept.numpy(), whole.intercept_, atol=1e-8)
    torch.testing.assert_close(found.mean, features.mean(0))
    torch.testing.assert_close(found.std, features.std(0, correction=0))


@pytest.mark.parametrize("rows", [1, 2, 12])
def test_features_that_do_not_vary_have_no_weight(rows):
    """In float32, their deviation is not exactly 0."""
    features, target = torch.full((rows, 3), 0.1), draw(rows, 1)
    found = ridge(features, target)
    assert found.weight.abs().max() < 1e-9 and torch.equal(found.std, torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(found.intercept, target.mean(0))
