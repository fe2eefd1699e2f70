"""What the multi-process configs need around a run that ``torchrun`` started, on GPUs (NCCL) or CPUs (gloo)."""

from __future__ import annotations

import os
from collections.abc import Sized

import ignite.distributed as idist
import torch
import torch.distributed as dist
from monai.data import DistributedSampler
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .networks import place
from .networks.sync_batch_norm import sync_batch_norms

__all__ = ["local_device", "rank", "share_of_batch", "start", "stop", "validation_sampler", "wrap"]


def rank() -> int:
    """Number of this process in the whole job, from the environment that ``torchrun`` sets."""
    return int(_variable("RANK"))


def local_device() -> torch.device:
    """The GPU of this process, or the CPU where there is none."""
    number = int(_variable("LOCAL_RANK"))
    return torch.device("cuda", number) if torch.cuda.is_available() else torch.device("cpu")


def start() -> None:
    """Make the process group and choose the device.

    ``idist.sync()`` follows at once: ignite would otherwise make its own group at its first use, a collective that
    hangs when only some ranks come to it.
    """
    if torch.cuda.is_available():
        torch.cuda.set_device(local_device())
    if not dist.is_initialized():
        dist.init_process_group(backend="nccl" if torch.cuda.is_available() else "gloo")
    idist.sync()


def wrap(
    network: nn.Module,
    device: torch.device,
    amp: bool = False,
    sync_batch_norm: bool = True,
    checkpointing: bool = False,
    compile: bool | str = False,
) -> DistributedDataParallel:
    """The network on its device, placed as the single-process configs place it, wrapped for several processes.

    Args:
        network: changed in place.
        device: of this process.
        amp: as of ``place``.
        sync_batch_norm: whether batch norms take the batches of all processes together, as one process with the whole
            batch would.

    Raises:
        RuntimeError: ``start`` has not run, because a later config file replaced ``initialize``.
    """
    if not dist.is_initialized():
        raise RuntimeError(
            "the process group is not started: name the multi_gpu_*.json file last, after evaluate.json."
        )
    if sync_batch_norm:
        network = sync_batch_norms(network, device)
    place(network, device, amp, checkpointing, compile)
    devices = [device] if device.type == "cuda" else None
    # MONAI's ViT holds parameters that its forward never uses. Buffers are alike in all processes already: weights are
    # drawn and loaded alike, norms are synchronised. To send them in each forward would pair up forwards of different
    # scans in validation, where processes have windows of different number.
    return DistributedDataParallel(
        network, device_ids=devices, find_unused_parameters=True, broadcast_buffers=not sync_batch_norm
    )


def share_of_batch(batch_size: int, processes: int | None = None) -> int:
    """Items of a batch that each process takes; ``batch_size`` is that of all processes together.

    Args:
        batch_size: of a training step.
        processes: by default those that ignite knows.

    Raises:
        ValueError: the processes cannot have equal parts.
    """
    processes = idist.get_world_size() if processes is None else processes
    if batch_size % processes:
        raise ValueError(
            f"batch_size is {batch_size}, that of all processes together, and {processes} processes cannot share it "
            f"equally: give a multiple of {processes}, or another --nproc_per_node."
        )
    return batch_size // processes


def validation_sampler(dataset: Sized) -> DistributedSampler:
    """Share the scans of a validation or test list out to the processes, each scan to one of them.

    Raises:
        ValueError: there are fewer scans than processes; each needs one, or it would wait for ever at the metrics.
    """
    scans, processes = len(dataset), idist.get_world_size()
    if scans < processes:
        raise ValueError(
            f"{scans} validation scans are too few for {processes} processes, each of which needs one: give the "
            f"validation (or evaluated) list of the datalist more, or start at most {scans} with --nproc_per_node."
        )
    return DistributedSampler(
        dataset,  # type: ignore[arg-type]
        even_divisible=False,
        num_replicas=processes,
        rank=idist.get_rank(),
        shuffle=False,
    )


def stop() -> None:
    """Destroy the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _variable(name: str) -> str:
    try:
        return os.environ[name]
    except KeyError:
        raise RuntimeError(f"{name} is not set: start multi_gpu_*.json configs with torchrun.") from None
