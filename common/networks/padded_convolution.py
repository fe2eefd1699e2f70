from __future__ import annotations

import functools

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
    """For three dimensions.

    On a CPU an image of one channel is taken as one of half the width with two channels: pairs of neighbours along the
    last axis. The weights are arranged accordingly, which gives the same function. For a single channel torch takes
    twice the time, five times in the weight's gradient, and always returns row-major tensors, which all that follows
    pays for.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self._of_pairs(input) if self._takes_pairs(input) else super().forward(input)

    def _takes_pairs(self, image: torch.Tensor) -> bool:
        kernel, middle = self.kernel_size, self.kernel_size[-1] // 2
        return (
            image.device.type == "cpu"
            and image.ndim == 5
            and self.in_channels == 1
            and not isinstance(self.padding, str)
            and self.padding_mode == "zeros"
            and (kernel[-1] % 2, self.stride[-1], self.dilation[-1], self.padding[-1]) == (1, 1, 1, middle)
            and image.shape[-1] % 2 == 0
            and image.shape[-1] // 2 >= 2 * ((middle + 1) // 2) + 1  # the kernel over pairs
            and all(image.shape[2 + axis] >= (kernel[axis] - 1) * self.dilation[axis] + 1 for axis in (0, 1))
            and not torch.jit.is_tracing()
            and not torch.compiler.is_compiling()
        )

    def _of_pairs(self, image: torch.Tensor) -> torch.Tensor:
        index, groups, margin = _pairs(self.kernel_size[-1])
        weight = F.pad(self.weight[:, 0], (margin, margin))[..., index]  # (O, kd, kh, written, read, group)
        weight = weight.permute(3, 0, 4, 1, 2, 5).flatten(0, 1)
        image = image.reshape(*image.shape[:1], *image.shape[2:-1], -1, 2).movedim(-1, 1)
        bias = None if self.bias is None else self.bias.repeat(2)
        padding = (*self.padding[:2], groups // 2)
        made = F.conv3d(image, weight, bias, self.stride, padding, self.dilation)  # type: ignore[arg-type]
        return made.movedim(1, -1).unflatten(-1, (2, -1)).flatten(-3, -2).movedim(-1, 1)


@functools.lru_cache
def _pairs(kernel: int) -> tuple[torch.Tensor, int, int]:
    """Where the weights of a kernel over pairs stand in the kernel: by written and read element and by pair.

    Returns:
        the index (2, 2, pairs), to be used after zeros were added at both ends; the pairs; how many zeros.
    """
    half = (kernel // 2 + 1) // 2
    margin = 2 * half + 1 - kernel // 2
    written, read, group = torch.meshgrid(
        torch.arange(2), torch.arange(2), torch.arange(-half, half + 1), indexing="ij"
    )
    return 2 * group + read - written + kernel // 2 + margin, 2 * half + 1, margin


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
