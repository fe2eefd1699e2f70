from __future__ import annotations

from typing import Any

import torch
from monai.networks.blocks.dynunet_block import UnetUpBlock
from monai.networks.blocks.unetr_block import UnetrUpBlock
from torch import nn
from torch.autograd.function import once_differentiable

from .substitution import is_recorded, substitute

__all__ = ["keep_gradients_dense"]


class _DenseSkip(nn.Module):
    transp_conv: Any
    conv_block: Any

    def forward(self, inp: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return self.conv_block(_concatenate(self.transp_conv(inp), skip))


class _DenseUnetrUpBlock(_DenseSkip, UnetrUpBlock):
    pass


class _DenseUnetUpBlock(_DenseSkip, UnetUpBlock):
    pass


def _concatenate(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    if first.ndim != 5 or is_recorded():
        return torch.cat((first, second), dim=1)
    return _Concatenation.apply(first.as_subclass(torch.Tensor), second.as_subclass(torch.Tensor))


class _Concatenation(torch.autograd.Function):
    """``torch.cat`` of channels. Torch's gradients are views of the whole, in which activations are slow on CPUs."""

    @staticmethod
    def forward(ctx: Any, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        ctx.sizes, ctx.dtypes = (first.shape[1], second.shape[1]), (first.dtype, second.dtype)
        return torch.cat((first, second), dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        parts = zip(gradient.split(ctx.sizes, dim=1), ctx.dtypes, strict=True)
        return tuple(part.to(dtype).contiguous(memory_format=torch.channels_last_3d) for part, dtype in parts)


def keep_gradients_dense(network: nn.Module) -> nn.Module:
    """Let gradients of MONAI's decoder blocks (UNETR, Swin UNETR, DynUNet) have the memory format of their inputs.

    Changes the network in place. Names in its state dict and its function stay.

    Returns:
        the network.
    """
    return substitute(network, {UnetrUpBlock: _DenseUnetrUpBlock, UnetUpBlock: _DenseUnetUpBlock})
