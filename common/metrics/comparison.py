from __future__ import annotations

import math

__all__ = ["is_higher", "is_lower"]


def is_higher(current: float, best: float) -> bool:
    """Whether a metric has improved, higher being better. A value that is not there (NaN) is worse than any other.

    For MONAI's ``metric_cmp_fn``, which by default keeps a first NaN as the best of the whole run.
    """
    return current > best or (math.isnan(best) and not math.isnan(current))


def is_lower(current: float, best: float) -> bool:
    """The same, lower being better."""
    return current < best or (math.isnan(best) and not math.isnan(current))
