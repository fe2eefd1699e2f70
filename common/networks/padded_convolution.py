from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["PaddedConv2d", "PaddedConv3d", "pad_small_images"]


class _Padded(nn.modules.conv._ConvNd):
    """A convolution that pads an image before it, where the kernel is larger than the image.

    On a CPU, oneDNN's gradient of the weights is wrong there: other numbers at each call, not finite, or written beyond
    the tensor's memory, so that the process ends (torch 2.13 with AVX-512: in bfloat16 for many such sizes, in float32
    for kernels of 7 with stride 2). Padded first, an image is never smaller than the kernel. The function is the same.
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
    """Of two dimensions."""


class PaddedConv3d(_Padded, nn.Conv3d):
    """Of three dimensions."""


def pad_small_images(network: nn.Module) -> nn.Module:
    """Let torch's own convolutions of a network, in place, take images that are smaller than their kernels.

    Returns:
        the network, with the names and the function that it had.
    """
    for module in network.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = PaddedConv2d
        elif type(module) is nn.Conv3d:
            module.__class__ = PaddedConv3d
    return network
