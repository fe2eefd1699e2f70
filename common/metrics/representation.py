from __future__ import annotations

import torch
from torch.nn import functional as F

__all__ = ["effective_rank", "feature_std", "position_cosines", "retrieval_rate"]


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


def position_cosines(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cosine of tokens of different volumes, at the same position and at different ones.

    A high first and a low second value show a collapse that token contrast can cause: the encoder encodes where a token
    lies and nothing about its content. Source: Hu et al., SimTROT, section 3.3 and figure 3.

    Args:
        tokens: (B, T, C), B volumes of T tokens in one order; B at least 2.

    Returns:
        two scalars; the second is NaN for a single token.

    Raises:
        ValueError: when ``tokens`` is not (B, T, C) with at least two volumes.
    """
    if tokens.ndim != 3 or len(tokens) < 2:
        raise ValueError(f"Needs the tokens of at least two volumes as (B, T, C), got shape {tuple(tokens.shape)}.")
    volumes, count = tokens.shape[:2]
    unit = F.normalize(tokens.float(), dim=2)
    # Sums over all pairs from sums of vectors: no table of pairs.
    pairs = volumes * (volumes - 1)
    same = unit.sum(0).square().sum() - unit.square().sum()
    all_pairs = unit.sum((0, 1)).square().sum() - unit.sum(1).square().sum()
    other = (all_pairs - same) / (pairs * count * max(count - 1, 1))
    return same / (pairs * count), other if count > 1 else torch.full_like(other, float("nan"))


def retrieval_rate(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Share of tokens that are most similar to their own volume's token, among all volumes at the same position.

    With tokens from masked volumes (``queries``) and from whole volumes (``keys``), it measures whether tokens encode
    content. Tokens can differ between volumes, with low cosines, and still not find their own: then they were pushed
    apart without learning the content. Chance is one over the number of volumes. Equal similarities, as from a code of
    the position alone, count as chance.

    Args:
        queries, keys: (B, T, C), the same B volumes of T tokens in one order; B at least 2.

    Returns:
        a scalar, from 0 to 1.

    Raises:
        ValueError: when they are not both (B, T, C) of one shape with at least two volumes.
    """
    if queries.ndim != 3 or queries.shape != keys.shape or len(queries) < 2:
        raise ValueError(
            "Needs tokens of at least two volumes as (B, T, C), twice of one shape, got "
            f"{tuple(queries.shape)} and {tuple(keys.shape)}."
        )
    queries, keys = (F.normalize(tokens.float(), dim=2) for tokens in (queries, keys))
    similarity = torch.einsum("btc,ktc->tbk", queries, keys)
    # Rounding makes equal similarities differ by some millionths.
    best = similarity >= similarity.amax(dim=2, keepdim=True) - 1e-5
    return (best.diagonal(dim1=1, dim2=2) / best.sum(dim=2)).mean()


def _check(features: torch.Tensor) -> None:
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"Needs at least two feature vectors as (N, d), got shape {tuple(features.shape)}.")
