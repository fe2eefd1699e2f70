from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ..tensors import plain_tensor

__all__ = ["WholeBatchLoss"]


class WholeBatchLoss(nn.Module):
    """The loss of a whole batch that is split equally between several processes.

    It gathers the predictions and targets of all processes, and each process computes the same loss from them. So
    negatives come from the whole batch, Dice covers the whole batch, and ignored voxels are left out of a single mean.
    The gradients that ``DistributedDataParallel`` averages then equal those of one process with the whole batch. The
    gather costs memory and time for all predictions and targets. ``enabled=False`` averages the losses of the processes
    instead, which is the same for a loss that is a mean over samples.

    Args:
        loss: called with a prediction and a target: tensors with the batch first, or sequences of them. Pretexts
            predict a mapping: only the parts that the loss reads are gathered, except those named in its ``shared``.
            Their target stays as it is, since pretexts do not read it.
        enabled: see above. With one process this changes nothing.
    """

    def __init__(self, loss: nn.Module, enabled: bool = True) -> None:
        super().__init__()
        self.loss = loss
        self.enabled = enabled

    def forward(self, prediction: Any, target: Any = None) -> torch.Tensor:
        if not (self.enabled and dist.is_initialized() and dist.get_world_size() > 1):
            return self.loss(prediction, target)
        if isinstance(prediction, Mapping):
            return self.loss(_Gathered(prediction, getattr(self.loss, "shared", ())), target)
        return self.loss(_gather(prediction), _gather(target))


class _Gathered(Mapping):
    """Parts of a prediction, each gathered on first read; all processes read the same parts in the same order."""

    def __init__(self, parts: Mapping[str, Any], shared: tuple[str, ...]) -> None:
        self.parts = parts
        self.read = {name: parts[name] for name in shared if name in parts}

    def __getitem__(self, name: str) -> Any:
        if name not in self.read:
            self.read[name] = _gather(self.parts[name])
        return self.read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)


def _gather(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_gather(part) for part in value]
    if not isinstance(value, torch.Tensor) or value.ndim == 0:
        return value
    return _AllGather.apply(plain_tensor(value))


class _AllGather(torch.autograd.Function):
    """Tensors of all processes, one after the other.

    Every process computes the same loss. So the gradient of the sum of all losses is its own gradient times the number
    of processes: no exchange is needed, and DDP's average is the gradient of one loss.
    """

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        ctx.rows = len(tensor)
        # As bytes: gloo does not have every type.
        mine = tensor.detach().contiguous().view(-1).view(torch.uint8)
        parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, mine)
        return torch.cat([part.view(tensor.dtype).view(tensor.shape) for part in parts])

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        start = dist.get_rank() * ctx.rows
        return grad[start : start + ctx.rows] * dist.get_world_size()
