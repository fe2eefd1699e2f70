from __future__ import annotations

import operator
from typing import NamedTuple

import torch

__all__ = ["Ridge", "ridge"]

EXPONENTS = range(-4, 5)
"""Penalties are these powers of ten times the mean square of the singular values."""


class Ridge(NamedTuple):
    """A ridge regression with an intercept, in float64."""

    mean: torch.Tensor  # (F,), of the features
    std: torch.Tensor  # (F,), 1 for a feature that does not vary
    weight: torch.Tensor  # (K, F), of the standardised features
    intercept: torch.Tensor  # (K,), the mean of the targets
    left_out: torch.Tensor  # (N, K), what the same regression without row i predicts of row i


def ridge(features: torch.Tensor, targets: torch.Tensor) -> Ridge:
    """Fit a ridge regression on standardised features; of nine penalties, the one that predicts left-out rows best.

    Left-out rows come from the hat matrix, not from a fit for each row. They share penalty and standardisation.

    Args:
        features: (N, F).
        targets: (N, K).
    """
    mean, y = features.double().mean(0), targets.double()
    x = features.double() - mean
    std = x.std(0, correction=0)
    # A feature that is the same in all rows differs from its mean by rounding alone.
    std = torch.where(std > 1e-9 * mean.abs().clamp(min=1e-3), std, 1)
    left, singular, right = torch.linalg.svd(x / std, full_matrices=False)
    power = singular.square()
    fits = []
    for exponent in EXPONENTS:
        penalised = power + 10.0**exponent * power.mean().clamp(min=1e-12)
        hat = (left * (power / penalised)) @ left.T + 1 / len(y)
        residual = (y - hat @ y) / (1 - hat.diagonal()).clamp(min=1e-9)[:, None]
        fits.append((float(residual.square().sum()), penalised, residual))
    _, penalised, residual = min(fits, key=operator.itemgetter(0))
    weight = ((left * (singular / penalised)).T @ y).T @ right
    return Ridge(mean, std, weight, y.mean(0), y - residual)
