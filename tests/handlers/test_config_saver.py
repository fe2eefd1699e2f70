from __future__ import annotations

import json
import sys
from pathlib import Path

import monai.bundle
import pytest
import torch
from ignite.engine import Engine, Events
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common import checks
from common.handlers import Checkpoint, ConfigSaver

CONFIG = {
    "bundle_root": ".",
    "output_dir": "$@bundle_root + '/models'",
    "max_epochs": 10,
    "train": {"dataloader": {"_target_": "DataLoader", "batch_size": 2}},
    "names": {"1": "grüne Zone"},
}


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Let this process look like the command, in a folder with configs."""
    monkeypatch.chdir(tmp_path)
    Path("train.json").write_text(json.dumps(CONFIG))
    Path("more.json").write_text(json.dumps({"train#dataloader#batch_size": 1}))

    def run(*arguments: str) -> None:
        main = Path(monai.bundle.__file__).with_name("__main__.py")
        monkeypatch.setattr(sys, "argv", [str(main), "run", *arguments])

    return run


def start(path: Path) -> None:
    engine = Engine(lambda engine, batch: None)
    ConfigSaver(path, path.parent / "tensorboard").attach(engine)
    engine.run([0], max_epochs=2)


def test_files_and_overrides_as_one_config_that_computes_the_same(command, tmp_path):
    given = ("--max_epochs", "3", "--output_dir", "runs/a", "--names#2", "other")
    tracking = ("--tracking", "mlflow", "--run_name", "x")
    command("--config_file", "['train.json','more.json']", *given, *tracking)
    path = tmp_path / "runs" / "a" / "train_config.json"
    start(path)
    expected = {**CONFIG, "max_epochs": 3, "output_dir": "runs/a", "names": {"1": "grüne Zone", "2": "other"}}
    expected["train"] = {"dataloader": {"_target_": "DataLoader", "batch_size": 1}}
    assert json.loads(path.read_text(encoding="utf-8")) == expected
    digest = checks.config_digest()
    command("--config_file", str(path))
    assert checks.config_digest() == digest
    command("--config_file", str(path), "--max_epochs", "4")
    assert checks.config_digest() != digest

    [file] = (path.parent / "tensorboard").glob("events.*")
    events = EventAccumulator(str(file)).Reload()
    [event] = events.Tensors("config/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    head, _, block = text.partition("\n\n")
    assert event.step == 0 and digest in head
    assert "".join(line[4:] + "\n" for line in block.splitlines()) == path.read_text(encoding="utf-8")


def train(path: Path, max_epochs: int, die_after: int | None = None) -> None:
    """Start or resume a run; the saver stands before the checkpoint, the less favourable order."""
    engine = Engine(lambda engine, batch: None)
    ConfigSaver(path, path.parent / "tensorboard").attach(engine)
    Checkpoint(path.with_name("train.ckpt"), {"network": torch.nn.Linear(1, 1)}, resume=True).attach(engine)

    @engine.on(Events.EPOCH_COMPLETED)
    def die(engine):
        if engine.state.epoch == die_after:
            raise KeyboardInterrupt

    engine.run([0], max_epochs=max_epochs)


def steps(folder: Path) -> list[int]:
    files = [EventAccumulator(str(file)).Reload() for file in folder.glob("events.*")]
    return sorted(event.step for file in files for event in file.Tensors("config/text_summary"))


def test_a_resumed_run_is_kept_under_its_epoch_and_a_refused_one_is_not(command, tmp_path):
    path = tmp_path / "train_config.json"
    command("--config_file", "train.json", "--names#2", "first")
    with pytest.raises(KeyboardInterrupt):
        train(path, max_epochs=4, die_after=2)
    assert steps(tmp_path / "tensorboard") == [0]

    command("--config_file", "train.json", "--names#2", "longer")
    with pytest.raises(ValueError, match="a run cannot be extended"):
        train(path, max_epochs=5)
    assert json.loads(path.read_text())["names"]["2"] == "first"

    command("--config_file", "train.json", "--names#2", "resumed")
    train(path, max_epochs=4)
    assert json.loads(path.read_text())["names"]["2"] == "resumed"
    assert steps(tmp_path / "tensorboard") == [0, 2]

    command("--config_file", "train.json", "--names#2", "once more")
    train(path, max_epochs=4)  # nothing is left to train
    assert json.loads(path.read_text())["names"]["2"] == "resumed"
    assert steps(tmp_path / "tensorboard") == [0, 2]


def test_nothing_is_written_where_the_config_is_not_known(tmp_path):
    start(tmp_path / "train_config.json")
    assert not list(tmp_path.iterdir())
