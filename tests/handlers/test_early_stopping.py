from __future__ import annotations

import logging

import pytest
import torch
from ignite.engine import Events
from ignite.metrics import Average
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import ValidationHandler
from torch import nn

from common.handlers import Checkpoint, EarlyStopping

DATA = [{"image": torch.ones(1), "label": torch.ones(1)}] * 2


def make(path, values, patience, max_epochs=12, resume=False, interval=1, val_interval=1):
    """Trainer whose validation of epoch n gives ``values[n - 1]``, larger being better; epochs and ends of both."""
    net = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    seen = {"epochs": [], "saved": [], "completed": 0}
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"), val_data_loader=DataLoader(Dataset(DATA), batch_size=2), network=net,
        key_val_metric={"score": Average(lambda output: values[trainer.state.epoch - 1])}, decollate=False,
    )  # fmt: skip
    trainer = SupervisedTrainer(
        device=torch.device("cpu"), max_epochs=max_epochs, network=net, optimizer=optimizer, decollate=False,
        train_data_loader=DataLoader(Dataset(DATA), batch_size=2), loss_function=nn.MSELoss(),
        train_handlers=[
            ValidationHandler(val_interval, evaluator), EarlyStopping(evaluator, patience),
            Checkpoint(path, {"network": net, "optimizer": optimizer}, resume, interval, evaluator),
        ],
    )  # fmt: skip

    @trainer.on(Events.EPOCH_COMPLETED)
    def epoch():
        seen["epochs"].append(trainer.state.epoch)
        seen["saved"].append(torch.load(path, weights_only=True)["epoch"] if path.exists() else None)

    @trainer.on(Events.COMPLETED)
    def completed():
        seen["completed"] += 1

    return trainer, evaluator, seen


@pytest.fixture
def path(tmp_path):
    return tmp_path / "train.ckpt"


RISES_TO_4 = [1.0, 2, 3, 4, 3.9, 3, 3.5, 2, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("values", "patience", "last"),
    [
        (RISES_TO_4, 1, 5),
        (RISES_TO_4, 3, 7),
        (RISES_TO_4, 8, 12),  # at the end anyway
        (RISES_TO_4, 30, 12),
        ([1.0, 0.5, 0.5, 2, 1, 1, 1, 9, 9, 9, 9, 9], 3, 7),  # the count starts anew at each improvement
        ([5.0] * 12, 2, 3),  # as good is not better
        (list(range(12)), 1, 12),
    ],
)
def test_stops_at_the_right_epoch_and_completes(path, caplog, values, patience, last):
    caplog.set_level(logging.INFO)
    trainer, evaluator, seen = make(path, values, patience)
    trainer.run()
    assert seen["epochs"] == list(range(1, last + 1)) and seen["completed"] == 1
    assert seen["saved"][-1] == last  # the checkpoint, which stands behind it, is still written
    best = evaluator.state.best_metric_epoch
    assert (
        f"stopped after epoch {last}: no better validation since epoch {best} (patience {patience})" in caplog.text
    ) == (last < 12 or last - best >= patience)


def test_epochs_are_counted_and_not_validations(path):
    values = [0.0, 3, 0, 2, 0, 1, 0, 0, 0, 0, 0, 0]
    trainer, _, seen = make(path, values, patience=3, val_interval=2)
    trainer.run()
    assert seen["epochs"][-1] == 5


def test_none_never_stops(path):
    trainer, _, seen = make(path, [5.0] * 12, None)
    trainer.run()
    assert seen["epochs"][-1] == 12


class Killed(Exception):
    pass


@pytest.mark.parametrize("kill", [1, 4, 5, 6])
@pytest.mark.parametrize("interval", [1, 2])
def test_a_killed_run_resumes_to_stop_at_the_same_epoch(path, kill, interval):
    trainer, _, _ = make(path, RISES_TO_4, 3, interval=interval)

    @trainer.on(Events.EPOCH_STARTED(once=kill + 1))
    def stop():
        raise Killed

    with pytest.raises(Killed):
        trainer.run()
    resumed, evaluator, seen = make(path, RISES_TO_4, 3, resume=True, interval=interval)
    resumed.run()
    assert seen["epochs"] == list(range(kill // interval * interval + 1, 8))
    assert evaluator.state.best_metric_epoch == 4 and evaluator.state.best_metric == 4


@pytest.mark.parametrize("interval", [1, 4, 10])
def test_a_stopped_run_resumed_trains_no_more(path, caplog, interval):
    make(path, RISES_TO_4, 3, interval=interval)[0].run()
    content = torch.load(path, weights_only=True)
    # What epoch 8 would give is better: training on would not only waste an epoch.
    resumed, _, seen = make(path, [*RISES_TO_4[:7], 9, 9, 9, 9, 9], 3, resume=True, interval=interval)
    steps = []
    resumed.add_event_handler(Events.ITERATION_STARTED, steps.append)
    caplog.set_level(logging.INFO)
    resumed.run()
    assert not steps and not seen["epochs"] and seen["completed"] == 1 and resumed.state.epoch == 7
    assert "stopped after epoch 7: no better validation since epoch 4 (patience 3)" in caplog.text
    assert torch.load(path, weights_only=True)["epoch"] == content["epoch"] == 7


@pytest.mark.parametrize("patience", [0, -2])
def test_patience_out_of_range(patience):
    with pytest.raises(ValueError, match=f"patience is {patience}; it must be 1 or more epochs, or null"):
        EarlyStopping(None, patience)
