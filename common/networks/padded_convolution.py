from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["PaddedConv2d", "PaddedConv3d", "pad_small_images"]


class _Padded(nn.modules.conv._ConvNd):
    """A convolution that first pads an image smaller than the kernel.

    For such images, oneDNN's weight gradient on a CPU is wrong: it differs at each call, is not finite, or writes
    beyond the tensor's memory, which ends the process (torch 2.13 with AVX-512: in bfloat16 for many such sizes, in
    float32 for kernels of 7 with stride 2). After padding, an image is never smaller than the kernel. The function is
    the same.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        extents = [(size - 1) * step + 1 for size, step in zip(self.kernel_size, self.dilation, strict=True)]
        sides = input.shape[-len(extents) :]
        if self.padding_mode != "zeros" or all(side >= extent for side, extent in zip(sides, extents, strict=True)):
            return super().forward(input)
        input = F.pad(input, self._reversed_padding_repeated_twice)
        convolve = F.conv3d if len(extents) == 3 else F.conv2d
        return convolve(input, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)  # type: ignore[operator]


class PaddedConv2d(_Padded, nn.Conv2d):
    """For two dimensions."""


class PaddedConv3d(_Padded, nn.Conv3d):
    """For three dimensions."""


def pad_small_images(network: nn.Module) -> nn.Module:
    """Let a network's torch convolutions take images smaller than their kernels; changes the network in place.

    Returns:
        the network, with the same names and function.
    """
    for module in network.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = PaddedConv2d
        elif type(module) is nn.Conv3d:
            module.__class__ = PaddedConv3d
    return network
