import io
import re
import sys

import pytest
import torch
from ignite.engine import Engine, Events

from common.handlers import ProgressBar, progress_bar


class Screen(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


@pytest.fixture
def screen(monkeypatch):
    def use(terminal):
        stream = Screen(terminal)
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    return use


def trainer(output=lambda iteration: {"loss": torch.tensor(float(iteration))}):
    return Engine(lambda engine, batch: output(engine.state.iteration))


def run(engine, bar, epochs=3, batches=4):
    bar.attach(engine)
    engine.run(range(batches), max_epochs=epochs)


def test_one_bar_for_the_run(screen):
    stream = screen(True)
    run(trainer(), ProgressBar("pre-train", interval=0))
    last = stream.getvalue().split("\r")[-1]
    assert "pre-train epoch 3/3" in last and "12/12" in last and "100%" in last
    assert "loss 10.5000" in last  # mean of 9, 10, 11 and 12
    assert stream.getvalue().count("\n") == 1


def test_resumed_run_starts_where_it_stopped(screen):
    stream = screen(True)
    engine = trainer()

    @engine.on(Events.STARTED)
    def resume():
        engine.state.epoch, engine.state.iteration = 2, 8

    run(engine, ProgressBar("train"))
    shown = re.findall(r"(\d+)/12 ", stream.getvalue())
    assert shown[0] == "8" and shown[-1] == "12"


def test_evaluator_counts_its_own_iterations(screen):
    """MONAI's evaluators set the epoch to the trainer's, and count iterations from 0."""
    stream = screen(True)
    engine = trainer(lambda iteration: [{"pred": 0}])

    @engine.on(Events.STARTED)
    def follow_the_trainer():
        engine.state.epoch, engine.state.max_epochs = 6, 7

    run(engine, ProgressBar("evaluate"), epochs=1)
    last = stream.getvalue().split("\r")[-1]
    assert "evaluate epoch 7/7" in last and "4/4" in last and "loss" not in last


def test_a_second_run_has_a_bar_of_its_own(screen):
    stream = screen(True)
    engine = trainer()
    run(engine, ProgressBar(), epochs=1)
    engine.run(range(5), max_epochs=1)
    assert "4/4" in stream.getvalue() and "5/5" in stream.getvalue()


def test_an_error_passes_on_and_the_next_run_is_whole(screen):
    stream = screen(True)
    bar = ProgressBar()

    def step(iteration):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        run(trainer(step), bar)
    run(trainer(), bar, epochs=1)
    assert "4/4" in stream.getvalue().split("\r")[-1]


def test_silent_where_stderr_is_no_terminal(screen):
    stream = screen(False)
    run(trainer(), ProgressBar())
    assert stream.getvalue() == ""


@pytest.mark.parametrize("output, losses", [
    (lambda i: {"loss": torch.tensor(float(i))}, ["2.5000", "6.5000"]),
    (lambda i: [{"loss": torch.tensor(float(i))}, {"loss": torch.tensor(float(i))}], ["2.5000", "6.5000"]),
    (lambda i: float(i), ["2.5000", "6.5000"]),
    (lambda i: torch.tensor([float(i)]), ["2.5000", "6.5000"]),
])  # fmt: skip
def test_lines(screen, output, losses):
    stream = screen(False)
    run(trainer(output), ProgressBar("fine-tune", lines=True), epochs=2)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    for number, (line, loss) in enumerate(zip(lines, losses, strict=True), start=1):
        left = ", about 00:00 left" if number == 1 else ""
        assert re.fullmatch(rf"fine-tune epoch {number}/2: loss {loss}, \d+\.\d s{left}", line)


@pytest.fixture
def clock(monkeypatch):
    """A clock that a step of training moves by some seconds; `clock(seconds)` makes the trainer."""
    now = 1000.0

    def make(seconds):
        def step(iteration):
            nonlocal now
            now += seconds
            return {"loss": torch.tensor(float(iteration))}

        return trainer(step)

    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: now)
    return make


def test_lines_within_a_long_epoch(screen, clock):
    stream = screen(False)
    run(clock(25), ProgressBar("train", lines=True), epochs=2, batches=7)
    assert stream.getvalue().splitlines() == [
        "train epoch 1/2: step 3 of 7, loss 2.0000, about 04:35 left",
        "train epoch 1/2: step 6 of 7, loss 3.5000, about 03:20 left",
        "train epoch 1/2: loss 4.0000, 175.0 s, about 02:55 left",
        "train epoch 2/2: step 3 of 7, loss 9.0000, about 01:40 left",
        "train epoch 2/2: step 6 of 7, loss 10.5000, about 00:25 left",
        "train epoch 2/2: loss 11.0000, 175.0 s",
    ]


def test_no_lines_within_short_epochs(screen, clock):
    stream = screen(False)
    run(clock(14), ProgressBar(lines=True), epochs=3)
    assert [line.split(":")[0] for line in stream.getvalue().splitlines()] == [f"train epoch {n}/3" for n in (1, 2, 3)]
    assert "step" not in stream.getvalue()


@pytest.mark.parametrize("output", [None, {}, [], {"pred": torch.zeros(2)}, torch.zeros(3)])
def test_lines_without_a_loss(screen, output):
    stream = screen(False)
    run(trainer(lambda iteration: output), ProgressBar(lines=True), epochs=1)
    assert re.fullmatch(r"train epoch 1/1: \d+\.\d s\n", stream.getvalue())


@pytest.mark.parametrize("terminal", [True, False])
def test_only_rank_0_shows_it(screen, monkeypatch, terminal):
    stream = screen(terminal)
    monkeypatch.setattr(progress_bar.idist, "get_rank", lambda: 1)
    run(trainer(), ProgressBar(lines=True))
    assert stream.getvalue() == ""
