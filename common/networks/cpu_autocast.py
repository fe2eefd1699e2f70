from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

__all__ = ["autocast_on_cpu"]


def autocast_on_cpu(network: nn.Module, device: torch.device | str, enabled: bool = True) -> nn.Module:
    """Let a network on a CPU compute in bfloat16 where autocast does, in place; its outputs are float32 again.

    MONAI's engines open an autocast for CUDA alone, so that their ``amp`` does nothing on a CPU. Weights, gradients,
    norms and what the network's code takes out of autocast stay in float32. On other devices nothing changes.

    Returns:
        the network.
    """
    if not enabled or torch.device(device).type != "cpu":
        return network
    opened: list[torch.autocast] = []

    def enter(module: nn.Module, inputs: Any) -> None:
        opened.append(torch.autocast("cpu", torch.bfloat16))
        opened[-1].__enter__()

    def leave(module: nn.Module, inputs: Any, output: Any) -> Any:
        opened.pop().__exit__(None, None, None)
        return tree_map(_to_float, output)

    network.register_forward_pre_hook(enter)
    network.register_forward_hook(leave, always_call=True)
    return network


def _to_float(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16 else value
