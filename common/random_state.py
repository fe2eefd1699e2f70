from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["seeded"]


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seed draws in the block with ``seed``; afterwards torch's generators continue as if nothing was drawn.

    It sets only the generators of the CPU and of ``device``: ``torch.manual_seed`` would set those of all GPUs, and
    ``fork_rng`` for some devices does not restore the others.
    """
    device = torch.device(device)
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng([device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
