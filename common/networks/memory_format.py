from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .substitution import is_recorded, substitute

__all__ = ["ChannelsLastInstanceNorm3d", "to_channels_last"]


class ChannelsLastInstanceNorm3d(nn.InstanceNorm3d):
    """Instance norm that keeps the memory format of its input.

    torch's instance norm returns row-major tensors, so in a ``channels_last_3d`` net every norm costs one copy, and the
    next convolution another one back. A group norm with one channel per group is the same function and keeps the format
    on a CPU. With running statistics, torch's own norm is used.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.running_mean is not None or input[0, 0].numel() == 1:  # torch's own refuses a single voxel
            return F.instance_norm(
                input,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                self.training or self.running_mean is None,
                self.momentum if self.momentum is not None else 0.0,
                self.eps,
            )
        if not torch.jit.is_scripting() and _takes_rows(input):
            # As a plain tensor: a MetaTensor comes out as a view, after which no activation in place may stand.
            return _InstanceNorm.apply(input.as_subclass(torch.Tensor), self.weight, self.bias, self.eps)
        return F.group_norm(input, self.num_features, self.weight, self.bias, self.eps)


def _takes_rows(image: torch.Tensor) -> bool:
    return (
        not is_recorded() and image.device.type == "cpu" and image.is_contiguous(memory_format=torch.channels_last_3d)
    )


class _InstanceNorm(torch.autograd.Function):
    """Instance norm of ``channels_last_3d`` input on a CPU, with torch's kernels for batch norms.

    Torch's kernels are slow where a row (the channels of a voxel) has few elements. So a row here has several voxels
    side by side: a batch norm of more channels, whose statistics are put together afterwards. Statistics are float32
    at least; in bfloat16 the gradient is rounded once more than torch's.
    """

    @staticmethod
    def forward(
        ctx: Any, image: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
    ) -> torch.Tensor:
        channels = image.shape[1]
        precision = torch.promote_types(image.dtype, torch.float32)
        output = torch.empty_like(image)
        means, scales = image.new_empty(2, *image.shape[:2], dtype=precision)
        for number, (voxels, normed) in enumerate(zip(_rows(image), _rows(output), strict=True)):
            running = image.new_zeros(2, voxels.shape[1], dtype=precision)  # tells torch the type of the results
            each, variance = torch.batch_norm_update_stats(voxels, running[0], running[1], 0.0)
            each, variance = each.view(-1, channels), variance.view(-1, channels)
            mean = each.mean(0)
            scale = (variance.mean(0) + (each - mean).square().mean(0) + eps).rsqrt()
            factor = scale if weight is None else weight.to(precision) * scale
            _scale(voxels, mean, factor, torch.zeros_like(mean) if bias is None else bias, normed)
            means[number], scales[number] = mean, scale
        ctx.save_for_backward(image, weight, means, scales)
        ctx.biased = bias is not None
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        image, weight, means, scales = ctx.saved_tensors
        gradient = gradient.to(image.dtype).contiguous(memory_format=torch.channels_last_3d)
        result, slopes = torch.empty_like(image), torch.empty_like(image[:1])
        count = image[0, 0].numel()
        by_weight, by_bias = means.new_zeros(2, image.shape[1])
        for number, (voxels, change, made) in enumerate(zip(*map(_rows, (image, gradient, result)), strict=True)):
            mean, scale = means[number], scales[number]
            shift, scaled = _sums(change, voxels, mean)
            scaled = scaled * scale  # sum over voxels of the gradient times the normalised image
            by_bias += shift
            by_weight += scaled
            factor = scale if weight is None else weight.to(scale.dtype) * scale
            zero = torch.zeros_like(mean)
            # Each part is rounded by itself, so each has its mean removed before.
            _scale(change, shift / count, factor, zero, made)
            made += _scale(voxels, mean, -factor * scale * scaled / count, zero, _rows(slopes)[0])
        affine = weight is not None
        return result, by_weight.to(weight.dtype) if affine else None, by_bias if ctx.biased else None, None


def _rows(image: torch.Tensor) -> list[torch.Tensor]:
    """Each image of a batch as (rows, width): the channels of several voxels make a row."""
    rows, width = image[0, 0].numel(), image.shape[1]
    while rows % 2 == 0 and width < 512:
        rows, width = rows // 2, width * 2
    return [one.movedim(0, -1).reshape(rows, width) for one in image]


def _scale(
    rows: torch.Tensor, mean: torch.Tensor, factor: torch.Tensor, bias: torch.Tensor, out: torch.Tensor
) -> torch.Tensor:
    """(rows - mean) * factor + bias into ``out``, in one pass."""
    mean, factor, bias = (_repeat(values, rows, mean.dtype) for values in (mean, factor, bias))
    variance, unused = torch.ones_like(mean), mean.new_empty(2, 0)
    torch.native_batch_norm(rows, factor, bias, mean, variance, False, 0.0, 0.0, out=(out, *unused))
    return out


def _sums(gradient: torch.Tensor, rows: torch.Tensor, mean: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For each channel, sums over voxels of the gradient and of the gradient times (rows - mean), in one pass."""
    repeated = _repeat(mean, rows, mean.dtype)
    ones = torch.ones_like(repeated)
    _, scaled, shift = torch.ops.aten.native_batch_norm_backward(
        gradient, rows, ones, repeated, ones, None, None, False, 0.0, [False, True, True]
    )
    return shift.view(-1, len(mean)).sum(0), scaled.view(-1, len(mean)).sum(0)


def _repeat(values: torch.Tensor, rows: torch.Tensor, precision: torch.dtype) -> torch.Tensor:
    return values.to(precision).repeat(rows.shape[1] // len(values))


def to_channels_last(network: nn.Module, device: torch.device | str | None = None) -> nn.Module:
    """Move a network to its device (None: it stays), in place, in the fastest memory format for its convolutions.

    Weights of 3-D convolutions become ``channels_last_3d``, those of 2-D ones ``channels_last``, and instance norms
    keep that format. Names in the state dict and the function do not change.

    Returns:
        the network.
    """
    substitute(network, {nn.InstanceNorm3d: ChannelsLastInstanceNorm3d})
    if device is not None:
        network.to(device)
    # `Module.to` takes one format and refuses a net that has convolutions of both kinds.
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in (*network.parameters(), *network.buffers()):
        if parameter.ndim in formats:
            parameter.data = parameter.data.contiguous(memory_format=formats[parameter.ndim])
    return network
