"""The machine that a plan is made for."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

__all__ = ["Machine", "this_machine"]


@dataclass(frozen=True)
class Machine:
    """Facts about the machine for a plan.

    Attributes:
        device: ``cpu`` or ``cuda``.
        cores: number of cores for this process.
        gpu_memory_gb: memory of the first GPU.
        name: name of the GPU, or the number of cores in words.
    """

    device: str
    cores: int
    gpu_memory_gb: float | None = None

    @property
    def name(self) -> str:
        if self.gpu_memory_gb is not None:
            return f"GPU with {self.gpu_memory_gb:.0f} GB"
        return f"{self.cores} CPU core{'s' * (self.cores != 1)}"


def this_machine() -> Machine:
    """The first GPU if torch sees one, otherwise the processor."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if torch.cuda.is_available():
        return Machine("cuda", cores, torch.cuda.get_device_properties(0).total_memory / 2**30)
    return Machine("cpu", cores)
