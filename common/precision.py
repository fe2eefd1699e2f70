from __future__ import annotations

import torch

__all__ = ["bfloat16_pays"]

INSTRUCTIONS = ("avx512_bf16", "amx_bf16")
"""Capabilities of a CPU, by torch's names, with which it multiplies bfloat16 in hardware."""


def bfloat16_pays(device: torch.device | str) -> bool:
    """Whether a device multiplies bfloat16 in hardware, as torch tells: NVIDIA from Ampere on, CPUs with AVX-512 BF16
    or AMX. Elsewhere torch emulates it, which is slower than float32."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind != "cpu" or not hasattr(torch.cpu, "get_capabilities"):  # older torch cannot tell
        return False
    return any(torch.cpu.get_capabilities().get(name, False) for name in INSTRUCTIONS)
