from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

__all__ = ["bfloat16_pays", "without_autocast"]

INSTRUCTIONS = ("avx512_bf16", "amx_bf16")
"""CPU capabilities, by torch's names, that multiply bfloat16 in hardware."""


def bfloat16_pays(device: torch.device | str) -> bool:
    """Whether a device multiplies bfloat16 in hardware, according to torch."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind != "cpu" or not hasattr(torch.cpu, "get_capabilities"):  # older torch cannot tell
        return False
    return any(torch.cpu.get_capabilities().get(name, False) for name in INSTRUCTIONS)


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Compute in the type of the operands, also under autocast; devices such as ``meta`` have none to leave."""
    return torch.autocast(device.type, enabled=False) if torch.amp.is_autocast_available(device.type) else nullcontext()
