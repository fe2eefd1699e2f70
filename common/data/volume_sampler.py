from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ignite.distributed as idist
from torch.utils.data import DistributedSampler

from ..distributed import share_of_batch

__all__ = ["VolumeSampler", "first_volumes"]


class VolumeSampler(DistributedSampler):
    """Random order of a data set in batches of different volumes, with epochs of any length.

    It serves contrasts between volumes: crops of one scan are not "other volumes". It can also fix the number of
    batches per epoch for any number of volumes, as in nnU-Net (250). Passes over the data follow each other; an item
    whose volume is already in the batch waits for the next one. Give the loader the same ``batch_size``, and take one
    crop per volume. The order depends on seed and epoch, which MONAI's trainer sets. Under torchrun the batches are the
    same as with one process, and each process takes its part of each batch.

    Args:
        data: the items of the data set.
        batch_size: items per batch, over all processes.
        batches: batches per epoch; None for one pass over the data (rounded down).
        key: items with equal values of this key, and of ``domain`` if present, are one volume. Items without it, and
            all items if None, are separate volumes.
        distinct: False allows a volume twice in a batch, which fine-tuning with a single label needs.
        seed: of the order.
        fixed: use the order of the first epoch in every epoch, for validation. Each process then takes whole batches,
            so the comparisons within a batch are the same for any number of processes.
        name: name of the data in messages, such as "the validation list", if its batches cannot be smaller; the advice
            is then to add scans.
        num_replicas, rank: number of processes and index of this one; by default from ignite.

    Raises:
        ValueError: there are fewer volumes than ``batch_size``, there is no batch, or the processes cannot share a
            batch.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        batch_size: int,
        batches: int | None = None,
        key: str | None = "subject",
        distinct: bool = True,
        seed: int = 0,
        fixed: bool = False,
        name: str | None = None,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        num_replicas = idist.get_world_size() if num_replicas is None else num_replicas
        super().__init__(data, num_replicas, idist.get_rank() if rank is None else rank, seed=seed)  # type: ignore[arg-type]
        self.volumes = _volumes(data, key)
        self.distinct = distinct
        self.fixed = fixed
        count = len(set(map(str, self.volumes)))
        if batch_size < 1 or count < (batch_size if distinct else 1):
            if name is not None:
                raise ValueError(
                    f"{name} has {count} volumes, too few for a batch of {batch_size} different ones, which are "
                    f"compared with each other: give {batch_size} scans or more."
                )
            raise ValueError(
                f"{count} volumes cannot fill a batch of {batch_size} different ones: lower batch_size, or add data."
            )
        self.batch_size = batch_size
        self.batches = len(data) // batch_size if batches is None else batches
        self.share = batch_size
        if fixed:
            self.batches //= num_replicas
        else:
            self.share = share_of_batch(batch_size, num_replicas)
        if self.batches < 1 and name is not None:
            raise ValueError(
                f"{name} has {len(data)} scans, which make no batch of {batch_size} for each of {num_replicas} "
                f"processes: give {batch_size * num_replicas} scans or more, or use fewer processes."
            )
        if self.batches < 1:
            of_each = f" for each of {num_replicas} processes" if fixed else ""
            raise ValueError(f"{len(data)} items make no batch of {batch_size}{of_each}: lower batch_size.")

    def __len__(self) -> int:
        return self.batches * self.share

    def __iter__(self) -> Iterator[int]:
        if self.fixed:
            mine = itertools.islice(self._batches(), self.rank, self.batches * self.num_replicas, self.num_replicas)
            return itertools.chain.from_iterable(mine)
        start = self.rank * self.share
        batches = itertools.islice(self._batches(), self.batches)
        return itertools.chain.from_iterable(batch[start : start + self.share] for batch in batches)

    def _batches(self) -> Iterator[list[int]]:
        """Endless batches. If a volume has more items than can be placed, the surplus of up to four passes waits."""
        draw = random.Random(f"{self.seed} {0 if self.fixed else self.epoch}")
        waiting: list[int] = []
        while True:
            waiting = waiting[-4 * len(self.volumes) :] + draw.sample(range(len(self.volumes)), len(self.volumes))
            while True:
                batch: list[int] = []
                for item in waiting:
                    if not self.distinct or self.volumes[item] not in [self.volumes[taken] for taken in batch]:
                        batch.append(item)
                    if len(batch) == self.batch_size:
                        break
                if len(batch) < self.batch_size:
                    break
                for item in batch:
                    waiting.remove(item)  # the first of its kind, which is the one that was taken
                yield batch


def first_volumes(items: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """The first items, as few as have ``count`` different volumes in the sense of ``VolumeSampler``; else all items."""
    seen: set[str] = set()
    for number, volume in enumerate(_volumes(items, "subject"), start=1):
        seen.add(str(volume))
        if len(seen) == count:
            return list(items[:number])
    return list(items)


def _volumes(items: Sequence[Mapping[str, Any]], key: str | None) -> list[tuple]:
    """What each item is a scan of."""
    named = [item.get(key) if key else None for item in items]
    return [
        (number,) if name is None else (name, item.get("domain"))
        for number, (name, item) in enumerate(zip(named, items, strict=True))
    ]
