from __future__ import annotations

import math

__all__ = ["is_higher", "is_lower"]


def is_higher(current: float, best: float) -> bool:
    """Whether a metric has improved, if higher is better. A missing value (NaN) is worse than any other.

    Use it as MONAI's ``metric_cmp_fn``; the default keeps a first NaN as the best of the whole run.
    """
    return current > best or (math.isnan(best) and not math.isnan(current))


def is_lower(current: float, best: float) -> bool:
    """Whether a metric has improved, if lower is better."""
    return current < best or (math.isnan(best) and not math.isnan(current))
