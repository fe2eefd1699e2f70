from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .substitution import substitute

__all__ = ["FloatLayerNorm", "float_layer_norms", "layer_norm"]


def layer_norm(
    input: torch.Tensor, shape: list[int], weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
) -> torch.Tensor:
    """``torch.nn.functional.layer_norm``, computed in float32 for bfloat16 input on a CPU; returns the input's type.

    torch's kernel for bfloat16 on a CPU adds up the gradients of weight and bias in bfloat16, row by row (``dgamma``
    and ``dbeta`` of ``layer_norm_backward_frame`` in ``aten/src/ATen/native/cpu/layer_norm_kernel.cpp``). Such a sum
    stops growing after a few hundred rows: of 10,000 rows with a mean gradient of 0.3, the bias got a third (torch
    2.13). Its output and the input's gradient are right. On CUDA, autocast computes layer norms in float32.
    """
    if input.device.type != "cpu" or input.dtype != torch.bfloat16:
        return F.layer_norm(input, shape, weight, bias, eps)
    if weight is not None:
        weight = weight.float()
    if bias is not None:
        bias = bias.float()
    return F.layer_norm(input.float(), shape, weight, bias, eps).to(input.dtype)


class FloatLayerNorm(nn.LayerNorm):
    """Layer norm by ``layer_norm``."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)  # type: ignore[arg-type]


def float_layer_norms(network: nn.Module) -> nn.Module:
    """Let a network's layer norms compute in float32 on a CPU, in place. Names in the state dict stay.

    Returns:
        the network.
    """
    return substitute(network, {nn.LayerNorm: FloatLayerNorm})
