from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["ChannelsLastInstanceNorm3d", "to_channels_last"]


class ChannelsLastInstanceNorm3d(nn.InstanceNorm3d):
    """Instance norm that keeps the memory format of its input.

    torch's instance norm returns row-major tensors, so in a ``channels_last_3d`` net every norm costs a copy there and
    the next convolution one back. A group norm with one channel a group is the same function and, on a CPU, keeps the
    format. With running statistics it is torch's own.
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
        return F.group_norm(input, self.num_features, self.weight, self.bias, self.eps)


def to_channels_last(network: nn.Module, device: torch.device | str | None = None) -> nn.Module:
    """Move a network to its device (None: it stays), in place, in the format in which its convolutions are fastest.

    Weights of 3-D convolutions become ``channels_last_3d``, those of 2-D ones ``channels_last``, and instance norms are
    made to keep that format; names in the state dict and the function stay as they are.

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
