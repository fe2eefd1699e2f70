from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

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
        if (
            not torch.jit.is_scripting()
            and torch.is_grad_enabled()
            and input.device.type == "cpu"
            and input.is_contiguous(memory_format=torch.channels_last_3d)
        ):
            # As a plain tensor: a MetaTensor comes out as a view, after which no activation in place may stand.
            return _InstanceNorm.apply(input.as_subclass(torch.Tensor), self.weight, self.bias, self.eps)
        return F.group_norm(input, self.num_features, self.weight, self.bias, self.eps)


class _InstanceNorm(torch.autograd.Function):
    """Torch's group norm with one channel per group, for ``channels_last_3d`` input on a CPU, with our own gradient.

    Torch's gradient takes 5 times as long for this case in float32, and 10 to 20 times in bfloat16.
    """

    @staticmethod
    def forward(
        ctx: Any, image: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
    ) -> torch.Tensor:
        batch, channels = image.shape[:2]
        output, mean, scale = torch.native_group_norm(
            image, weight, bias, batch, channels, image[0, 0].numel(), channels, eps
        )
        ctx.save_for_backward(image, weight, mean, scale)
        ctx.biased = bias is not None
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        image, weight, mean, scale = ctx.saved_tensors
        batch, channels = image.shape[:2]
        gradient = gradient.contiguous(memory_format=torch.channels_last_3d)
        result = torch.empty_like(image)
        voxels = image[0, 0].numel()
        # Several voxels make a row: torch is slow where a row has few elements.
        rows, width = voxels, channels
        while rows % 2 == 0 and width < 512:
            rows, width = rows // 2, width * 2
        images, gradients, results = (
            tensor.movedim(1, -1).reshape(batch, rows, width) for tensor in (image, gradient, result)
        )
        precision = torch.promote_types(image.dtype, torch.float32)
        pieces = [
            slice(start, start + 2**16 // width) for start in range(0, rows, 2**16 // width)
        ]  # fit a core's cache
        by_weight, by_bias = torch.zeros(2, channels, dtype=precision)
        for number in range(batch):
            shift, scaled = torch.zeros(2, width, dtype=precision)
            for piece in pieces:
                change = gradients[number, piece].to(precision)
                shift += change.sum(0)
                scaled += (change * images[number, piece]).sum(0)
            shift, scaled = (total.view(-1, channels).sum(0) for total in (shift, scaled))
            scaled = (scaled - mean[number] * shift) * scale[number]  # of the gradient and the normalised image
            by_bias += shift
            by_weight += scaled
            factor = scale[number] if weight is None else weight * scale[number]
            slope = -factor * scale[number] * scaled / voxels
            offset = -factor * shift / voxels - slope * mean[number]
            factor, slope, offset = (
                values.to(precision).repeat(width // channels) for values in (factor, slope, offset)
            )
            for piece in pieces:
                change = gradients[number, piece] * factor
                results[number, piece] = change.addcmul_(images[number, piece].to(precision), slope).add_(offset)
        affine = weight is not None
        return result, by_weight.to(weight.dtype) if affine else None, by_bias if ctx.biased else None, None


def to_channels_last(network: nn.Module, device: torch.device | str | None = None) -> nn.Module:
    """Move a network to its device (None: it stays), in place, in the fastest memory format for its convolutions.

    Weights of 3-D convolutions become ``channels_last_3d``, those of 2-D ones ``channels_last``, and instance norms
    keep that format. Names in the state dict and the function do not change.

    Returns:
        the network.
    """
    for module in network.modules():
        if type(module) is nn.InstanceNorm3d:
            module.__class__ = ChannelsLastInstanceNorm3d
    if device is not None:
        network.to(device)
    # `Module.to` takes one format and refuses a net that has convolutions of both kinds.
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in (*network.parameters(), *network.buffers()):
        if parameter.ndim in formats:
            parameter.data = parameter.data.contiguous(memory_format=formats[parameter.ndim])
    return network
