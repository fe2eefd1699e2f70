from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ignite.distributed as idist
from torch.utils.data import DistributedSampler

from ..distributed import share_of_batch

__all__ = ["DomainSampler"]


class DomainSampler(DistributedSampler):
    """Random order of a data set in batches of one domain each; large domains do not drown small ones.

    It serves nets with one branch per domain (Chen et al., arXiv 1904.00625, section 3.2). The batches of an epoch are
    divided among the domains, at least one each, and mixed. Passes over the items of a domain follow each other, each
    in a new order. Give the loader the same ``batch_size``. The order depends on seed and epoch, which MONAI's trainer
    sets. Under torchrun the batches are the same as with one process, and each process takes its part of each batch.

    Args:
        data: the items of the data set, with a ``domain``.
        batch_size: items per batch, over all processes. A domain with fewer items repeats them.
        batches: batches per epoch; None for one pass over as many items as there are.
        balance: 1 gives each domain an equal share of the batches, 0 a share in proportion to its items; values between
            use ``items ** (1 - balance)``.
        key: of the domain in an item.
        seed: of the order.
        num_replicas, rank: number of processes and index of this one; by default from ignite.

    Raises:
        ValueError: an item has no domain, ``balance`` is not from 0 to 1, there are fewer batches than domains, or the
            processes cannot share a batch.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        batch_size: int,
        batches: int | None = None,
        balance: float = 1.0,
        key: str = "domain",
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        num_replicas = idist.get_world_size() if num_replicas is None else num_replicas
        super().__init__(data, num_replicas, idist.get_rank() if rank is None else rank, seed=seed)  # type: ignore[arg-type]
        if not 0 <= balance <= 1:
            raise ValueError(f"`balance` is {balance}; it must be from 0 (by size) to 1 (equal shares).")
        self.items: dict[Any, list[int]] = {}
        for number, item in enumerate(data):
            if item.get(key) in (None, ""):
                raise ValueError(
                    f"Item {number} ({item.get('image')}) has no {key!r}; common.data.load_domains gives it."
                )
            self.items.setdefault(item[key], []).append(number)
        self.batch_size = batch_size
        self.batches = max(1, len(data) // batch_size) if batches is None else batches
        self.share = share_of_batch(batch_size, num_replicas)
        if self.batches < len(self.items):
            raise ValueError(
                f"{self.batches} batches per epoch are fewer than the {len(self.items)} domains, so some would "
                "never be trained: raise batches_per_epoch, or lower batch_size."
            )
        weights = {name: len(items) ** (1 - balance) for name, items in self.items.items()}
        self.shares = _share_out(self.batches, weights)

    def __len__(self) -> int:
        return self.batches * self.share

    def __iter__(self) -> Iterator[int]:
        start = self.rank * self.share
        return itertools.chain.from_iterable(batch[start : start + self.share] for batch in self._batches())

    def _batches(self) -> Iterator[list[int]]:
        draw = random.Random(f"{self.seed} {self.epoch}")
        order = [name for name, share in self.shares.items() for _ in range(share)]
        draw.shuffle(order)
        streams = {name: self._stream(name, self.epoch * self.shares[name] * self.batch_size) for name in self.shares}
        for name in order:
            yield list(itertools.islice(streams[name], self.batch_size))

    def _stream(self, name: Any, start: int) -> Iterator[int]:
        """Endless stream of a domain's items, pass after pass, starting where earlier epochs ended."""
        items = self.items[name]
        for number in itertools.count(start // len(items)):
            one_pass = random.Random(f"{self.seed} {name} {number}").sample(items, len(items))
            yield from one_pass[start % len(items) if number == start // len(items) else 0 :]


def _share_out(batches: int, weights: Mapping[Any, float]) -> dict[Any, int]:
    """Whole batches in proportion to the weights, by largest remainders; each domain first gets one."""
    free, total = batches - len(weights), sum(weights.values())
    exact = {name: free * weight / total for name, weight in weights.items()}
    shares = {name: 1 + int(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: int(exact[name]) - exact[name])
    for name in by_remainder[: batches - sum(shares.values())]:
        shares[name] += 1
    return shares
