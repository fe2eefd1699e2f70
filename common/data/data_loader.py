from __future__ import annotations

import random
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import monai.data
import numpy as np
import torch
from monai.data.utils import set_rnd, worker_init_fn
from torch.utils.data import Dataset, get_worker_info
from torch.utils.data._utils.worker import _generate_state

__all__ = ["DataLoader"]


class DataLoader(monai.data.DataLoader):
    """MONAI's ``DataLoader`` whose workers start once, and draw in each epoch what workers started for it would draw.

    An epoch depends on the global generator of torch alone, as without persistent workers. So a run that is resumed
    after an epoch goes on with the same bits (``common.handlers.EpochSeed``). The seed of an epoch travels with its
    batches, so that no worker can begin with the one before.

    Args:
        dataset: map-style.
        num_workers: processes that load batches; they live as long as the loader.
        augment_on: as of ``common.data.CachedDataset``; with ``device``, a thread prepares the next batch while one is
            used, like MONAI's ``ThreadDataLoader``, and its errors reach the run.
        persistent_workers: False starts workers for each epoch. The batches are the same to the bit.
        **kwargs: passed to MONAI's loader, but ``worker_init_fn``.
    """

    def __init__(
        self,
        dataset: Dataset,
        num_workers: int = 0,
        augment_on: str = "cpu",
        persistent_workers: bool = True,
        **kwargs: Any,
    ) -> None:
        self.in_thread = augment_on == "device" and num_workers == 0
        self.epochs = 0
        persistent = persistent_workers and num_workers > 0 and kwargs.get("batch_size", 1) is not None
        if persistent:
            kwargs["worker_init_fn"] = _listen_for_seeds
        super().__init__(dataset, num_workers, persistent_workers=persistent, **kwargs)

    @property
    def _index_sampler(self) -> Any:
        batches = super()._index_sampler
        return _SeededBatches(self, batches) if self.persistent_workers else batches

    def _get_iterator(self) -> Any:
        batches = super()._get_iterator()
        queues = getattr(batches, "_index_queues", None)
        if queues:
            # By these torch tells its workers to end. Objects of a run refer to each other in circles, and when Python
            # frees a circle, it closes the queues first: torch then waits 5 seconds for each worker.
            weakref.finalize(batches, queues.copy().clear).atexit = False
        return batches

    def __iter__(self) -> Any:
        batches = super().__iter__()
        return _ahead(batches) if self.in_thread else batches


def _ahead(batches: Iterator[Any]) -> Iterator[Any]:
    """Batches, each made in a thread while the one before is used."""
    with ThreadPoolExecutor(1) as thread:
        made = thread.submit(next, batches, None)
        while (batch := made.result()) is not None:
            made = thread.submit(next, batches, None)
            yield batch


class _Batch(list):
    """Indices of a batch, with the seed of its epoch."""

    seed: int


class _SeededBatches:
    """Indices of batches. From the second epoch on they have a seed, since torch seeds workers that start."""

    def __init__(self, loader: DataLoader, batches: Any) -> None:
        self.loader, self.batches = loader, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Sequence[int]]:
        self.loader.epochs += 1
        if self.loader.epochs == 1:
            yield from self.batches
            return
        # Where torch draws it for workers that start: ahead of the sampler's own draws.
        seed = int(torch.empty((), dtype=torch.int64).random_(generator=self.loader.generator).item())
        for indices in self.batches:
            batch = _Batch(indices)
            batch.seed = seed
            yield batch


class _Items:
    """Gives a worker the items of a batch, and seeds its generators when an epoch begins."""

    def __init__(self, dataset: Any, worker: int) -> None:
        self.dataset, self.worker = dataset, worker
        self.seed: int | None = None
        self.many = getattr(dataset, "__getitems__", None)

    def __call__(self, indices: Sequence[int]) -> Any:
        seed = getattr(indices, "seed", None)
        if seed is not None and seed != self.seed:
            self._begin(seed)
        return self.many(indices) if self.many else [self.dataset[index] for index in indices]

    def _begin(self, seed: int) -> None:
        """As torch and MONAI do when a worker starts."""
        self.seed = seed
        random.seed(seed + self.worker)
        torch.manual_seed(seed + self.worker)
        np.random.seed(_generate_state(seed, self.worker))
        set_rnd(self.dataset, seed=seed + self.worker)


def _listen_for_seeds(worker: int) -> None:
    worker_init_fn(worker)
    info = get_worker_info()
    assert info is not None
    dataset: Any = info.dataset
    dataset.__getitems__ = _Items(dataset, worker)
