from __future__ import annotations

import torch

__all__ = ["bfloat16_pays"]

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
