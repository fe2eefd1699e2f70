from __future__ import annotations

import copy
import logging
import operator
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Loss
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import ValidationHandler
from torch import nn

from common.handlers import Checkpoint, EpochSeed, LearningRate
from common.handlers.momentum_teacher import move_teacher
from common.optimizers import CosineSchedule


class Student(nn.Module):
    """A network with dropout, so that a generator out of step shows, and a teacher that moves after each step."""

    def __init__(self, width=4):
        super().__init__()
        self.student = nn.Sequential(nn.Linear(2, width), nn.Dropout(0.5), nn.Linear(width, 1))
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def forward(self, x):
        return self.student(x)


class Killed(Exception):
    pass


def make(path, max_epochs=4, samples=6, resume=False, width=4, interval=1):
    """Trainer, network and evaluator."""
    torch.manual_seed(3)
    net = Student(width)
    optimizer = torch.optim.AdamW(net.student.parameters(), lr=0.05)
    scheduler = CosineSchedule(optimizer, warmup=0.2)
    generator = torch.Generator().manual_seed(1)
    data = [{"image": torch.randn(2, generator=generator), "label": torch.ones(1)} for _ in range(samples)]
    loader = DataLoader(Dataset(data), batch_size=2, shuffle=True)
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"), val_data_loader=DataLoader(Dataset(data), batch_size=2), network=net,
        key_val_metric={
            "val_loss": Loss(nn.functional.mse_loss, output_transform=operator.itemgetter("pred", "label"))
        },
        metric_cmp_fn=operator.lt, decollate=False,
    )  # fmt: skip
    save_dict = {"network": net, "optimizer": optimizer, "lr_scheduler": scheduler}
    trainer = SupervisedTrainer(
        device=torch.device("cpu"), max_epochs=max_epochs, train_data_loader=loader, network=net,
        loss_function=nn.MSELoss(), optimizer=optimizer, decollate=False,
        train_handlers=[
            EpochSeed(0), LearningRate(scheduler), ValidationHandler(1, evaluator),
            Checkpoint(path, save_dict, resume, interval, evaluator),
        ],
    )  # fmt: skip
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: move_teacher(net.student, net.teacher, 0.9))
    return trainer, net, evaluator


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "train.ckpt"


def final(trainer):
    return {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}


@pytest.mark.parametrize(
    ("kill", "next_epoch"),
    [
        ((Events.EPOCH_COMPLETED, 3), 3),  # before the checkpoint of epoch 3 is written
        ((Events.EPOCH_STARTED, 4), 4),
        ((Events.ITERATION_COMPLETED, 8), 3),
        ((Events.ITERATION_STARTED, 2), 1),  # before any checkpoint
    ],
)
def test_a_killed_run_resumes_to_the_same_bits(path, tmp_path, caplog, kill, next_epoch):
    whole, _, judge = make(tmp_path / "whole.ckpt")
    whole.run()
    trainer, _, _ = make(path)
    handlers = trainer._event_handlers

    @trainer.on(kill[0](once=kill[1]))
    def stop():
        raise Killed

    if kill[0] == Events.EPOCH_COMPLETED:  # ahead of the checkpoint
        handlers[kill[0]].insert(0, handlers[kill[0]].pop())
    with pytest.raises(Killed):
        trainer.run()

    resumed, _, evaluator = make(path, resume=True)
    epochs = []
    resumed.add_event_handler(Events.EPOCH_STARTED, lambda engine: epochs.append(engine.state.epoch))
    with caplog.at_level(logging.INFO):
        resumed.run()
    assert epochs[0] == next_epoch
    assert "nothing is left to train" not in caplog.text
    assert f"resumed from {path} after epoch {next_epoch - 1} of 4" in caplog.text or next_epoch == 1
    expected = final(whole)
    assert all(torch.equal(expected[name], tensor) for name, tensor in final(resumed).items())
    assert any("teacher" in name for name in expected)
    assert evaluator.state.best_metric == judge.state.best_metric
    assert evaluator.state.best_metric_epoch == judge.state.best_metric_epoch
    assert torch.load(path, weights_only=True)["best"] == torch.load(tmp_path / "whole.ckpt", weights_only=True)["best"]


def test_a_finished_run_resumed_trains_no_more_and_says_so(path, caplog):
    trainer, _, _ = make(path)
    trainer.run()
    expected = final(trainer)
    resumed, _, _ = make(path, resume=True)
    steps = []
    resumed.add_event_handler(Events.ITERATION_STARTED, steps.append)
    resumed.run()
    assert not steps and all(torch.equal(expected[name], tensor) for name, tensor in final(resumed).items())
    assert f"nothing is left to train: the run of {path} is finished" in caplog.text


def test_nothing_to_resume_starts_at_epoch_1(path, caplog):
    caplog.set_level(logging.INFO)
    trainer, _, _ = make(path, resume=True)
    epochs = []
    trainer.add_event_handler(Events.EPOCH_STARTED, lambda engine: epochs.append(engine.state.epoch))
    trainer.run()
    assert epochs == [1, 2, 3, 4] and f"nothing to resume: no checkpoint {path}, starting at epoch 1" in caplog.text


def test_starting_anew_over_an_old_run_is_warned_of(path, caplog):
    make(path)[0].run()
    make(path)[0].run()
    assert (
        f"starting from epoch 1: {path} of an earlier run will be overwritten (resume it with --resume True"
        in caplog.text
    )


@pytest.mark.parametrize("checkpoint", [True, False])
def test_starting_anew_names_all_that_will_be_overwritten(tmp_path, monkeypatch, caplog, checkpoint):
    monkeypatch.chdir(tmp_path)
    model, missing = tmp_path / "model.pt", tmp_path / "other.pt"
    model.write_bytes(b"")
    if checkpoint:
        Path("train.ckpt").write_bytes(b"")
    engine = Engine(lambda engine, batch: None)
    Checkpoint("train.ckpt", {"network": nn.Linear(1, 1)}, outputs=["model.pt", "other.pt"]).attach(engine)
    engine.run([0], max_epochs=1)
    both = f"{tmp_path / 'train.ckpt'} and {model}" if checkpoint else f"{model}"
    assert f"starting from epoch 1: {both} of an earlier run" in caplog.text and "another --output_dir" in caplog.text
    assert str(missing) not in caplog.text and ("--resume" in caplog.text) == checkpoint


@pytest.mark.parametrize(("interval", "epochs"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (9, [5])])
def test_the_last_epoch_is_always_saved(path, monkeypatch, interval, epochs):
    saved = []
    monkeypatch.setattr(Checkpoint, "save", lambda self, engine: saved.append(engine.state.epoch))
    make(path, max_epochs=5, interval=interval)[0].run()
    assert saved == epochs


def test_only_rank_0_writes(path, monkeypatch):
    monkeypatch.setattr("common.handlers.checkpoint.idist.get_rank", lambda: 1)
    make(path)[0].run()
    assert not path.exists()


@pytest.mark.parametrize("epoch", [1, 3])
def test_a_kill_during_saving_leaves_a_loadable_checkpoint(path, monkeypatch, epoch):
    save, calls = torch.save, []

    def fail(content, file):
        calls.append(content)
        if content["epoch"] == epoch:
            file.write(b"half a checkpoint")
            raise Killed
        save(content, file)

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(Killed):
        make(path)[0].run()
    assert len(calls) == epoch
    assert sorted(file.name for file in path.parent.glob("*")) == (["train.ckpt"] if epoch > 1 else [])
    monkeypatch.undo()
    resumed, _, _ = make(path, resume=True)
    epochs = []
    resumed.add_event_handler(Events.EPOCH_STARTED, lambda engine: epochs.append(engine.state.epoch))
    resumed.run()
    assert epochs[0] == epoch


def truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


def empty(path):
    path.write_bytes(b"")


def another_run(path):
    torch.save({"objects": {"network": {}}}, path)


def a_state_dict(path):
    torch.save(nn.Linear(2, 2).state_dict(), path)


def a_tensor(path):
    torch.save(torch.zeros(2), path)


@pytest.mark.parametrize(
    ("spoil", "arguments", "message"),
    [
        (truncate, {}, "is not a readable checkpoint .*delete it to start from epoch 1"),
        (empty, {}, "is not a readable checkpoint"),
        (another_run, {}, r"is not a checkpoint of this run \(it does not hold network, optimizer, lr_scheduler\)"),
        (a_state_dict, {}, "is not a checkpoint of this run"),
        (a_tensor, {}, "is not a checkpoint of this run"),
        (None, {"max_epochs": 6}, "written with max_epochs 4, but this run has 6: the learning-rate schedule"),
        (None, {"samples": 10}, "written with epoch_length 3, but this run has 5: the data, the batch size"),
        (None, {"width": 5}, "the state of network does not fit .*resume with the configuration of the first run"),
    ],
)
def test_checkpoints_that_do_not_fit(path, spoil, arguments, message):
    make(path)[0].run()
    if spoil is not None:
        spoil(path)
    trainer, net, _ = make(path, resume=True, **arguments)
    before = {name: tensor.clone() for name, tensor in net.student.state_dict().items()}
    with pytest.raises(ValueError, match=message) as raised:
        trainer.run()
    assert str(raised.value).startswith(str(path)) and len(str(raised.value).splitlines()) == 1
    if "width" not in arguments:
        assert all(torch.equal(before[name], tensor) for name, tensor in net.student.state_dict().items())


def without(*place):
    return lambda content: _inside(content, place[:-1]).pop(place[-1])


def put(value, *place):
    return lambda content: _inside(content, place[:-1]).__setitem__(place[-1], value)


def nan(*place):
    return lambda content: _inside(content, place).view(-1)[:1].fill_(float("nan"))


def _inside(content, place):
    for key in place:
        content = content[key]
    return content


OPTIMIZER = ("objects", "optimizer")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *((without(key), f": {key} is missing") for key in ("epoch", "iteration", "max_epochs", "epoch_length")),
        (without("best"), ": best is missing"),
        (without("scaler"), ": scaler is missing"),
        (without("best", "best_metric"), ": best/best_metric is missing"),
        (put(99, "epoch"), ": epoch is 99 but must be between 1 and 4"),
        (put(-1, "epoch"), ": epoch is -1 but must be between 1 and 4"),
        (put(1.0, "epoch"), ": epoch is 1.0 but must"),
        (put(11, "iteration"), ": iteration is 11 but must be 12, 4 epochs of 3 iterations"),
        (nan("objects", "network", "student.0.weight"), ": objects/network/student.0.weight holds numbers that"),
        (
            without("objects", "network", "student.0.bias"),
            r"not fit \(student.0.bias is only in this run\)",
        ),
        (put(torch.zeros(1), "objects", "network", "new"), r"network does not fit \(new is only in the file\)"),
        (put({}, *OPTIMIZER), ": objects/optimizer/param_groups is missing"),
        (put({}, *OPTIMIZER, "state"), ": objects/optimizer/state is empty"),
        (put([], *OPTIMIZER, "param_groups"), r"optimizer does not fit \(param_groups are 0, this run's 1\)"),
        (put([0], *OPTIMIZER, "param_groups", 0, "params"), "group 0 has 1 parameters, this run's 4"),
        (put(float("nan"), *OPTIMIZER, "param_groups", 0, "lr"), ": objects/optimizer/param_groups/0/lr is nan"),
        (without(*OPTIMIZER, "state", 1, "exp_avg"), ": objects/optimizer/state/1/exp_avg is missing"),
        (nan(*OPTIMIZER, "state", 1, "exp_avg_sq"), ": objects/optimizer/state/1/exp_avg_sq holds numbers that"),
        (
            put(torch.zeros(2), *OPTIMIZER, "state", 0, "exp_avg"),
            r": objects/optimizer/state/0/exp_avg has the shape \[2\] but must have \[4, 2\]",
        ),
        (put({}, *OPTIMIZER, "state", 77), ": objects/optimizer/state/77 belongs to no parameter"),
        (put(None, *OPTIMIZER, "state", 0, "exp_avg"), ": objects/optimizer/state/0/exp_avg has the shape None"),
        (without("objects", "lr_scheduler", "last_epoch"), ": objects/lr_scheduler/last_epoch is missing"),
    ],
)
def test_a_damaged_checkpoint_is_refused_before_anything_is_loaded(path, change, message):
    make(path)[0].run()
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    trainer, net, _ = make(path, resume=True)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(ValueError, match=message) as raised:
        trainer.run()
    assert str(raised.value).startswith(str(path)) and len(str(raised.value).splitlines()) == 1
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert not trainer.optimizer.state


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_only_an_optimizer_that_keeps_moments_needs_them(path, momentum):
    net = nn.Linear(1, 1)

    def step(engine, batch):
        optimizer.zero_grad()
        net(torch.ones(1, 1)).sum().backward()
        optimizer.step()

    for resume in (False, True):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=momentum)
        engine = Engine(step)
        Checkpoint(path, {"network": net, "optimizer": optimizer}, resume).attach(engine)
        engine.run([0], max_epochs=1)
    assert bool(optimizer.state) == bool(momentum)


def test_a_buffer_that_is_infinite_in_this_run_too_is_no_damage(path):
    for resume in (False, True):
        net = nn.Linear(1, 1)
        net.register_buffer("mask", torch.tensor([float("-inf")]))
        engine = Engine(lambda engine, batch: None)
        Checkpoint(path, {"network": net}, resume).attach(engine)
        engine.run([0], max_epochs=1)


def test_the_scaler_goes_along(path):
    class Scaler:
        def __init__(self, scale):
            self.scale = scale

        def state_dict(self):
            return {"scale": self.scale}

        def load_state_dict(self, state):
            self.scale = state["scale"]

    net, scalers = nn.Linear(1, 1), (Scaler(7.0), Scaler(1.0))
    for scaler, resume in zip(scalers, (False, True), strict=True):
        engine = Engine(lambda engine, batch: None)
        engine.scaler = scaler
        Checkpoint(path, {"network": net}, resume).attach(engine)
        engine.run([0], max_epochs=1)
    assert scalers[1].scale == 7.0
