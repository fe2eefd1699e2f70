from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .substitution import is_recorded, substitute

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
        if input.device.type != "cpu" or is_recorded():
            return super().forward(input)
        if self._takes_pairs(input):
            return self._of_pairs(input)
        if self._writes_few(input):
            # what autocast does, which does not reach into a function of our own
            image = input.to(torch.bfloat16).as_subclass(torch.Tensor)
            return _FewWritten.apply(image, self.weight.to(torch.bfloat16), *self._axes())
        return super().forward(input)

    def _may_pair(self, image: torch.Tensor) -> bool:
        """Whether the last axis has pairs, and the other axes need no padding to the kernel's size."""
        return (
            image.ndim == 5
            and not isinstance(self.padding, str)
            and self.padding_mode == "zeros"
            and image.shape[-1] % 2 == 0
            and all(image.shape[2 + axis] >= (self.kernel_size[axis] - 1) * self.dilation[axis] + 1 for axis in (0, 1))
        )

    def _takes_pairs(self, image: torch.Tensor) -> bool:
        kernel, middle = self.kernel_size, self.kernel_size[-1] // 2
        return (
            self._may_pair(image)
            and self.in_channels == 1
            and (kernel[-1] % 2, self.dilation[-1], self.padding[-1]) == (1, 1, middle)
            and self.stride[-1] <= 2
            and image.shape[-1] // 2 >= 2 * ((middle + 1) // 2) + 1  # the kernel over pairs
        )

    def _writes_few(self, image: torch.Tensor) -> bool:
        autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        return (
            (autocast or image.dtype == self.weight.dtype == torch.bfloat16)
            and self._may_pair(image)
            and self.out_channels == 8
            and self.in_channels % 8 == 0
            and self.groups == 1
            and self.bias is None
            and (self.kernel_size[-1], self.stride[-1], self.dilation[-1], self.padding[-1]) == (3, 1, 1, 1)
            and image.shape[-1] >= 4
        )

    def _axes(self) -> tuple[tuple[int, ...], ...]:
        return self.stride, self.padding, self.dilation  # type: ignore[return-value]

    def _of_pairs(self, image: torch.Tensor) -> torch.Tensor:
        index, groups, margin = _pairs(self.kernel_size[-1])
        written = 2 // self.stride[-1]  # of a pair
        weight = F.pad(self.weight[:, 0], (margin, margin))[..., index[:written]]  # (O, kd, kh, written, read, group)
        weight = weight.permute(3, 0, 4, 1, 2, 5).flatten(0, 1)
        image = image.reshape(*image.shape[:1], *image.shape[2:-1], -1, 2).movedim(-1, 1)
        bias = None if self.bias is None else self.bias.repeat(written)
        stride, padding = (*self.stride[:2], 1), (*self.padding[:2], groups // 2)
        made = F.conv3d(image, weight, bias, stride, padding, self.dilation)  # type: ignore[arg-type]
        return made.movedim(1, -1).unflatten(-1, (written, -1)).flatten(-3, -2).movedim(-1, 1)


class _FewWritten(torch.autograd.Function):
    """A convolution with a kernel of 3 along the last axis that writes two neighbours of this axis at a time.

    oneDNN computes 16 channels at a time. Where 8 are written, half of the work is for nothing. Two neighbours have 16,
    from a kernel of 4 with a stride of 2: a third less work in the forward pass and in the weight's gradient. The
    image's gradient is that of the plain convolution.
    """

    @staticmethod
    def forward(ctx: Any, image: torch.Tensor, weight: torch.Tensor, *axes: tuple[int, ...]) -> torch.Tensor:
        ctx.save_for_backward(image, weight)
        stride, padding, dilation = ctx.axes = axes
        with torch.autocast("cpu", enabled=False):
            made = F.conv3d(image, _neighbours(weight), None, (*stride[:2], 2), padding, dilation)
        made = made.movedim(1, -1).unflatten(-1, (2, -1)).flatten(-3, -2).movedim(-1, 1)
        # Not as a view: torch lets no activation work in place on a view that a function of ours returns.
        return made.new_empty(0).set_(made.untyped_storage(), made.storage_offset(), made.shape, made.stride())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        image, weight = ctx.saved_tensors
        stride, padding, dilation = ctx.axes
        rest = (dilation, False, (0, 0, 0), 1)
        by_image = by_weight = None
        if ctx.needs_input_grad[0]:
            by_image = torch.ops.aten.convolution_backward(
                gradient, image, weight, None, stride, padding, *rest, (True, False, False)
            )[0]
        if ctx.needs_input_grad[1]:
            both = gradient.movedim(1, -1).unflatten(-2, (-1, 2)).flatten(-2).movedim(-1, 1)
            twice = torch.ops.aten.convolution_backward(
                both, image, _neighbours(weight), None, (*stride[:2], 2), padding, *rest, (False, True, False)
            )[1]
            first, second = twice.chunk(2)
            by_weight = first[..., :3] + second[..., 1:]
        return by_image, by_weight, None, None, None


def _neighbours(weight: torch.Tensor) -> torch.Tensor:
    """(O, I, kd, kh, 3) -> (2 O, I, kd, kh, 4): the kernel of an element and that of the next one."""
    return torch.cat((F.pad(weight, (0, 1)), F.pad(weight, (1, 0)))).contiguous(memory_format=torch.channels_last_3d)


@functools.lru_cache
def _pairs(kernel: int) -> tuple[torch.Tensor, int, int]:
    """Where the weights of a kernel over pairs stand in the kernel: by written and read element and by pair.

    Returns:
        the index (2, 2, pairs), to be used after zeros were added at both ends; the pairs; how many zeros.
    """
    half = (kernel // 2 + 1) // 2
    margin = 2 * half + 1 - kernel // 2
    with torch.inference_mode(False):  # the gradient keeps the index
        written, read, group = torch.meshgrid(
            torch.arange(2), torch.arange(2), torch.arange(-half, half + 1), indexing="ij"
        )
        return 2 * group + read - written + kernel // 2 + margin, 2 * half + 1, margin


def pad_small_images(network: nn.Module) -> nn.Module:
    """Let a network's torch convolutions take images smaller than their kernels; changes the network in place.

    Returns:
        the network, with the same names and function.
    """
    return substitute(network, {nn.Conv2d: PaddedConv2d, nn.Conv3d: PaddedConv3d})
