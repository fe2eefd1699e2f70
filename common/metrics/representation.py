from __future__ import annotations

import torch
from torch.nn import functional as F

__all__ = ["effective_rank", "feature_std"]


def feature_std(features: torch.Tensor) -> torch.Tensor:
    """Mean standard deviation of the coordinates of L2-normalised feature vectors.

    About ``1 / sqrt(d)`` for vectors spread evenly over the sphere, 0 when all of them point the same way (collapse).
    Source: Chen and He, "Exploring Simple Siamese Representation Learning", CVPR 2021, section 4.1.

    Args:
        features: vectors (N, d), N at least 2.

    Returns:
        a scalar.

    Raises:
        ValueError: when ``features`` is not (N, d) with at least two vectors.
    """
    _check(features)
    return F.normalize(features.float(), dim=1).std(dim=0, correction=0).mean()


def effective_rank(features: torch.Tensor) -> torch.Tensor:
    """Effective number of directions in which feature vectors vary around their mean.

    The exponential of the entropy of the singular values of the centred matrix, scaled to sum 1: k when the spread is
    equal along k directions, at most ``min(N - 1, d)``, and 0 when all vectors are equal to float32 precision.
    Source: Roy and Vetterli, "The Effective Rank", EUSIPCO 2007, definition 1.

    Args:
        features: vectors (N, d), N at least 2.

    Returns:
        a scalar.

    Raises:
        ValueError: when ``features`` is not (N, d) with at least two vectors.
    """
    _check(features)
    features = features.double()
    values = torch.linalg.svdvals(features - features.mean(dim=0))
    # What is left of equal rows is rounding, which would count as full rank.
    values = values[values > torch.finfo(torch.float32).eps * torch.linalg.norm(features)]
    if len(values) == 0:
        return values.new_zeros((), dtype=torch.float32)
    shares = values / values.sum()
    return torch.exp(torch.special.entr(shares).sum()).float()


def _check(features: torch.Tensor) -> None:
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"Needs at least two feature vectors as (N, d), got shape {tuple(features.shape)}.")
