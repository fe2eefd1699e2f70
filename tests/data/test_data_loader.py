"""Workers that start once draw what workers of each epoch drew, and a resumed run what the whole one did."""

from __future__ import annotations

import gc
import os
import random
import threading
import time

import monai.data
import numpy as np
import pytest
import torch
from monai.data import Dataset
from monai.transforms import Compose, OneOf, RandScaleIntensity, RandShiftIntensity
from torch.utils.data import SequentialSampler, Subset

from common.data import DataLoader


def from_everywhere(item):
    """Draws from each global generator, with the process that draws."""
    draws = [random.random(), np.random.rand(), torch.rand(()).item()]
    return torch.cat([item.flatten().double(), torch.tensor([*draws, os.getpid()], dtype=torch.float64)])


def dataset():
    some = OneOf([RandScaleIntensity(0.5, prob=0.5), RandShiftIntensity(1.0, prob=0.9)])
    items = [torch.ones(1, 2) * number for number in range(1, 8)]
    return Dataset(items, Compose([RandScaleIntensity(0.5, prob=1.0), some, from_everywhere]))


def epochs(loader, numbers=range(4)):
    """By epoch: its batches, without the workers; the workers; what the main process draws afterwards."""
    found = {}
    for number in numbers:
        random.seed(number)  # as EpochSeed does
        np.random.seed(number)
        torch.manual_seed(number)
        monai.data.utils.set_rnd(loader.dataset, number)
        batches = list(loader)
        found[number] = (
            [batch[:, :-1].tolist() for batch in batches],
            {int(worker) for batch in batches for worker in batch[:, -1]},
            torch.rand(2).tolist(),
        )
    return found


def without_workers(found):
    return {number: (batches, after) for number, (batches, _, after) in found.items()}


@pytest.mark.parametrize("options", [{"shuffle": True}, {"sampler": "sequential", "drop_last": True}], ids=str)
def test_all_epochs_have_the_bits_of_workers_that_start_anew(options):
    data = dataset()
    options = dict(options, batch_size=2, num_workers=2)
    if "sampler" in options:
        options["sampler"] = SequentialSampler(data)
    before = epochs(monai.data.DataLoader(data, **options))
    ours = epochs(DataLoader(data, **options))
    assert without_workers(ours) == without_workers(before)
    assert len({str(batches) for batches, _, _ in ours.values()}) == 4, "epochs must differ"
    assert len(set.union(*(workers for _, workers, _ in before.values()))) == 8
    assert len(set.union(*(workers for _, workers, _ in ours.values()))) == 2


def test_a_resumed_run_goes_on_with_the_same_bits():
    whole, resumed = (epochs(DataLoader(dataset(), batch_size=2, num_workers=2), n) for n in (range(4), range(2, 4)))
    assert without_workers(resumed) == {number: without_workers(whole)[number] for number in (2, 3)}


def test_an_epoch_that_was_left_does_not_change_the_next():
    loader = DataLoader(dataset(), batch_size=2, num_workers=2, shuffle=True)
    torch.manual_seed(5)
    next(iter(loader))
    whole = epochs(monai.data.DataLoader(dataset(), batch_size=2, num_workers=2, shuffle=True), [0, 1])
    assert without_workers(epochs(loader, [0, 1])) == without_workers(whole)


def test_without_workers_it_is_monais():
    found = []
    for kind in (monai.data.DataLoader, DataLoader):
        torch.manual_seed(0)
        found.append(epochs(kind(dataset(), batch_size=2, shuffle=True), [0, 1]))
    assert found[0] == found[1]


def test_workers_for_each_epoch_are_a_choice():
    found = epochs(DataLoader(dataset(), batch_size=2, num_workers=1, persistent_workers=False), [0, 1])
    assert len(set.union(*(workers for _, workers, _ in found.values()))) == 2


def test_workers_end_at_once_when_python_frees_a_circle():
    """As the objects of a run are one; torch would wait 5 seconds for each worker."""
    loader = DataLoader(dataset(), batch_size=2, num_workers=2)
    circle = [loader, iter(loader)]
    next(circle[1])
    workers = list(circle[1]._workers)
    circle.append(circle)
    began = time.monotonic()
    del loader, circle
    gc.collect()
    # Torch would take 10.
    assert not any(worker.is_alive() for worker in workers) and time.monotonic() - began < 8


class Several(Subset):
    """A data set that gives all items of a batch at once."""

    def __getitems__(self, indices):
        return [self.dataset[self.indices[index]] + 100 for index in indices]


def test_items_that_come_together_still_do():
    loader = DataLoader(Several(dataset(), range(3)), batch_size=3, num_workers=1)
    for _ in range(2):
        (batch,) = loader
        assert batch[:, :2].min() > 99


def test_a_thread_prepares_the_next_batch_with_the_same_draws():
    threads = []

    def note(item):
        threads.append(threading.get_ident())
        return item

    data = Dataset([torch.ones(1, 2) * n for n in range(7)], Compose([RandScaleIntensity(0.5, prob=0.5), note]))
    found = []
    for where in ("cpu", "device"):
        torch.manual_seed(3)
        batches = []
        for batch in DataLoader(data, batch_size=2, shuffle=True, augment_on=where):
            torch.rand(5)  # as a training step draws
            batches.append(batch.tolist())
        found.append((batches, torch.rand(2).tolist()))
    assert found[0] == found[1] and len(found[0][0]) == 4
    here = threading.get_ident()
    assert set(threads[:7]) == {here} and len(set(threads[7:])) == 1 and here not in threads[7:]


def test_an_error_in_the_thread_reaches_the_run():
    def refuse(item):
        if item.max() == 4:
            raise OSError("scan 4 is damaged")
        return item

    data = Dataset([torch.ones(1, 2) * number for number in range(6)], Compose([refuse]))
    batches = iter(DataLoader(data, batch_size=2, augment_on="device"))
    assert len([next(batches), next(batches)]) == 2
    with pytest.raises(Exception, match=r"applying transform|scan 4 is damaged"):
        next(batches)
