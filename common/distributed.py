"""Helpers for configs with several processes, started by ``torchrun``, on GPUs (NCCL) or CPUs (gloo)."""

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
    """Rank of this process in the whole job, from the environment that ``torchrun`` sets."""
    return int(_variable("RANK"))


def local_device() -> torch.device:
    """The GPU of this process, or the CPU if there is none."""
    number = int(_variable("LOCAL_RANK"))
    return torch.device("cuda", number) if torch.cuda.is_available() else torch.device("cpu")


def start() -> None:
    """Create the process group and choose the device.

    It calls ``idist.sync()`` immediately. Otherwise ignite would create its own group on first use, a collective call
    that hangs if only some ranks reach it.
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
    """Place the network on its device like the single-process configs, and wrap it for several processes.

    Args:
        network: changed in place.
        device: device of this process.
        amp: as for ``place``.
        sync_batch_norm: whether batch norms use the batches of all processes, like one process with the whole batch.

    Raises:
        RuntimeError: ``start`` has not run, because a later config file set ``processes`` back, or one left the step
            ``"@processes"`` out of ``initialize``.
    """
    if not dist.is_initialized():
        raise RuntimeError(
            "the process group is not started: name the multi_gpu_*.json file last, after evaluate.json, and keep the "
            'step "@processes" in `initialize` where a file of yours replaces it.'
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
    """Items of a batch for each process; ``batch_size`` counts all processes together.

    Args:
        batch_size: items of a training step.
        processes: their number; by default from ignite.

    Raises:
        ValueError: the processes cannot share the batch equally.
    """
    processes = idist.get_world_size() if processes is None else processes
    if batch_size % processes:
        raise ValueError(
            f"batch_size is {batch_size} over all processes, and {processes} processes cannot share it "
            f"equally: give a multiple of {processes}, or another --nproc_per_node."
        )
    return batch_size // processes


def validation_sampler(dataset: Sized) -> DistributedSampler:
    """Distribute the scans of a validation or test list over the processes; each scan goes to one process.

    Raises:
        ValueError: there are fewer scans than processes; a process without a scan would wait for ever at the metrics.
    """
    scans, processes = len(dataset), idist.get_world_size()
    if scans < processes:
        raise ValueError(
            f"{scans} validation scans are too few for {processes} processes, since each needs one: add "
            f"scans to the validation (or evaluated) list of the datalist, or start at most {scans} "
            "processes with --nproc_per_node."
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
