"""Parameter groups for optimisers, and learning rates over a run."""

from .parameter_groups import parameter_groups
from .run_schedule import CosineSchedule, ExponentialSchedule, PolynomialSchedule, RunSchedule
from .weight_decay import decay_groups

__all__ = [
    "CosineSchedule",
    "ExponentialSchedule",
    "PolynomialSchedule",
    "RunSchedule",
    "decay_groups",
    "parameter_groups",
]
