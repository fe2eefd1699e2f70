from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["SyncBatchNorm", "needs_several_values", "sync_batch_norms"]


class SyncBatchNorm(_BatchNorm):
    """Batch norm over the batches of all processes, on any device; torch's version needs a GPU.

    Means, variances, running statistics and gradients are the same as for one process with the whole batch. Processes
    may have batches of different sizes. In evaluation nothing is exchanged, since the processes need not have the same
    number of batches there: a norm without running statistics uses those of its own batch, like torch's.

    Args: those of ``torch.nn.BatchNorm3d``. ``forward`` takes (B, C) or (B, C, *spatial).
    """

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"a batch norm takes (B, C, ...), got {tuple(input.shape)}.")

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        self._check_input_dim(input)
        if not self.training:
            return super().forward(input)
        # MONAI's images carry a record of each sample, which parts of sums do not have.
        x = input.as_subclass(torch.Tensor).transpose(0, 1).flatten(1)  # type: ignore[arg-type]
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        sums = _all_sum(torch.cat((x.sum(1), x.new_tensor([x.shape[1]]))))
        count = sums[-1].detach()
        if count <= 1:
            raise ValueError("a batch norm in training needs more than one value per channel: raise batch_size.")
        mean = sums[:-1] / count
        centred = x - mean[:, None]
        variance = _all_sum(centred.square().sum(1)) / count
        if self.running_mean is not None and self.running_var is not None:
            self._update(mean.detach(), variance.detach() * count / (count - 1))
        out = centred * (variance + self.eps).rsqrt()[:, None]
        if self.weight is not None:
            out = out * self.weight[:, None] + self.bias[:, None]
        out = out.unflatten(1, (input.shape[0], *input.shape[2:])).transpose(0, 1)
        return out.to(input.dtype)

    @torch.no_grad()
    def _update(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        self.num_batches_tracked.add_(1)  # type: ignore[union-attr, operator]
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum  # type: ignore[arg-type]
        for buffer, value in ((self.running_mean, mean), (self.running_var, variance)):
            buffer.lerp_(value.to(buffer.dtype), momentum)  # type: ignore[union-attr, operator]


def sync_batch_norms(network: nn.Module, device: torch.device) -> nn.Module:
    """Let the batch norms of a network use the batches of all processes.

    Returns:
        the network, changed in place, or its replacement if it is itself a batch norm. It uses torch's norm on GPUs and
        this module's elsewhere. Other norms, and names of parameters, stay.
    """
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    if isinstance(network, _BatchNorm) and not isinstance(network, (SyncBatchNorm, nn.SyncBatchNorm)):
        own = SyncBatchNorm(
            network.num_features, network.eps, network.momentum, network.affine, network.track_running_stats
        )
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            setattr(own, name, getattr(network, name))  # the same tensors, which an optimiser may hold
        return own.train(network.training)
    for name, child in network.named_children():
        new = sync_batch_norms(child, device)
        if new is not child:
            setattr(network, name, new)
    return network


def needs_several_values(network: nn.Module) -> bool:
    """Whether this process alone must supply the two values per channel that a batch norm needs in training.

    With several processes and synchronised norms it need not: each has at least one sample.
    """
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return True
    return not any(isinstance(part, (SyncBatchNorm, nn.SyncBatchNorm)) for part in network.modules())


def _all_sum(tensor: torch.Tensor) -> torch.Tensor:
    return _AllSum.apply(tensor) if dist.is_initialized() and dist.get_world_size() > 1 else tensor


class _AllSum(torch.autograd.Function):
    """Sum over the processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        return total
