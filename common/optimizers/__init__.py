"""Parameter groups for optimisers, and learning rates over a run."""

from .groups import decay_groups, parameter_groups
from .run_schedule import CosineSchedule, ExponentialSchedule, PolynomialSchedule, RunSchedule, SawtoothSchedule

__all__ = [
    "CosineSchedule",
    "ExponentialSchedule",
    "PolynomialSchedule",
    "RunSchedule",
    "SawtoothSchedule",
    "decay_groups",
    "parameter_groups",
]
