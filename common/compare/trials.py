"""The combinations of values that tuning tries."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from typing import Any

from .bundle_config import BundleConfig
from .settings import Arm, CompareError, Settings, is_factor


def list_trials(settings: Settings) -> list[dict[str, Any]]:
    """The combinations of values to try, the same in every arm; multiples of an arm's own value stay as given."""
    if not settings.tune:
        return []
    grid = [dict(zip(settings.tune, values, strict=True)) for values in itertools.product(*settings.tune.values())]
    count = min(settings.tune_trials or len(grid), len(grid))
    return [grid[number] for number in sorted(random.Random(0).sample(range(len(grid)), count))]


def trial_values(trial: Mapping[str, Any], config: BundleConfig, arm: Arm) -> dict[str, Any]:
    """The values of a trial in an arm.

    Raises:
        CompareError: a multiple is requested of a value that is not a number.
    """
    values = dict(trial)
    for key, value in trial.items():
        if is_factor(value):
            own = config.get(key)
            if isinstance(own, bool) or not isinstance(own, (int, float)):
                raise CompareError(
                    f"--tune {key}={value}: {key} of arm {arm.name!r} is {own!r}, which is not a number to multiply."
                )
            values[key] = float(f"{own * float(value[1:]):.4g}")
    return values
