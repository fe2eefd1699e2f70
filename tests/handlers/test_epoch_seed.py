from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset
from monai.transforms import Compose, Lambda, RandScaleIntensity, RandShiftIntensity

import common.handlers.epoch_seed as module
from common.handlers import EpochSeed


def draws(epochs, start=0, seed=0, fixed=False, num_workers=0, spoil=0):
    """What each epoch draws: three generators, and two random transforms by way of the data."""
    transform = Compose([RandScaleIntensity(0.5, prob=0.5), Lambda(lambda x: x), RandShiftIntensity(1.0, prob=0.9)])
    dataset = Dataset([torch.ones(1, 2) * number for number in range(1, 7)], transform)
    loader = DataLoader(dataset, batch_size=2, shuffle=True, num_workers=num_workers)
    found: dict[int, list] = {}

    def step(engine, batch):
        found.setdefault(engine.state.epoch, []).append(
            (random.random(), np.random.rand(), torch.rand(2).tolist(), batch.tolist())
        )

    engine = Engine(step)
    engine.data_loader = loader  # as MONAI's workflows have it
    EpochSeed(seed, fixed).attach(engine)

    @engine.on(Events.STARTED)
    def resume():
        engine.state.epoch, engine.state.iteration = start, start * 3
        for _ in range(spoil):
            random.random(), np.random.rand(), torch.rand(1)

    engine.run(loader, max_epochs=epochs)
    return found


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_epoch_draws_the_same_wherever_the_run_starts(num_workers):
    whole = draws(3, num_workers=num_workers)
    resumed = draws(3, start=1, num_workers=num_workers, spoil=5)
    assert list(whole) == [1, 2, 3] and list(resumed) == [2, 3]
    assert resumed == {epoch: whole[epoch] for epoch in (2, 3)}


def test_epochs_and_seeds_differ():
    first, second = draws(2), draws(2, seed=1)
    values = [epochs[epoch][0][number] for epochs in (first, second) for epoch in (1, 2) for number in (0, 1)]
    assert len(set(values)) == 8
    data = [str([row[3] for row in epochs[epoch]]) for epochs in (first, second) for epoch in (1, 2)]
    assert len(set(data)) == 4


def test_ranks_differ(monkeypatch):
    first = draws(1)
    monkeypatch.setattr(module.idist, "get_rank", lambda: 1)
    assert draws(1)[1][0][0] != first[1][0][0]


def test_fixed_is_the_same_in_every_epoch():
    found = draws(2, fixed=True)
    assert [row[:3] for row in found[1]] == [row[:3] for row in found[2]]
    assert [row[3] for row in found[1]] == [row[3] for row in found[2]]
