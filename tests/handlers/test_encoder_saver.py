from __future__ import annotations

import operator
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Loss
from monai.engines import SupervisedEvaluator
from monai.handlers import ValidationHandler
from monai.transforms import Orientationd, ScaleIntensityd, Spacingd
from torch import nn

import common.handlers.encoder_saver as module
import common.weights.encoder_file as encoder_file
from common.handlers import Checkpoint, EncoderSaver
from common.preparation import preparation_record
from common.weights import read_encoder

IMAGES = [Orientationd("image", "RAS", labels=None), Spacingd("image", (1.0, 1.0, 1.0)), ScaleIntensityd("image")]


class Killed(Exception):
    pass


def run(path, values, validate=True, resume=False, kill=None, max_epochs=None):
    """Pre-training whose encoder holds `values[epoch - 1]`, which is the validation loss too."""
    encoder = nn.Linear(1, 1, bias=False)
    trainer, evaluator = Engine(lambda engine, batch: None), None

    @trainer.on(Events.EPOCH_COMPLETED)
    def train():
        nn.init.constant_(encoder.weight, values[trainer.state.epoch - 1])

    if validate:
        evaluator = SupervisedEvaluator(
            device=torch.device("cpu"), val_data_loader=[{"image": torch.ones(1, 1), "label": torch.zeros(1, 1)}],
            network=encoder, metric_cmp_fn=operator.lt, decollate=False,
            key_val_metric={
                "val_loss": Loss(nn.functional.l1_loss, output_transform=operator.itemgetter("pred", "label"))
            },
        )  # fmt: skip
        ValidationHandler(1, evaluator).attach(trainer)
    EncoderSaver(path, encoder, IMAGES, "MAE", "145 brains", evaluator, spatial_size=(32, 32, 32)).attach(trainer)
    if kill is not None:

        @trainer.on(Events.EPOCH_COMPLETED(once=kill))
        def stop():
            raise Killed

    Checkpoint(path.with_name("pretrain.ckpt"), {"network": encoder}, resume, evaluator=evaluator).attach(trainer)
    trainer.run([0, 0], max_epochs=max_epochs or len(values))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "models" / "encoder.safetensors"


def weight(path):
    state, record = read_encoder(path)
    return state["weight"].item(), record["epochs"]


def files(path):
    return sorted(file.name for file in path.parent.iterdir() if file.suffix == ".safetensors")


def test_nan_is_no_best_validation(path):
    nan = float("nan")
    run(path, [nan, 3, nan, 2, 9])
    assert weight(path) == (2, 4)
    run(path, [1, nan])
    assert weight(path) == (1, 1)


@pytest.mark.parametrize(
    ("validate", "values", "which"),
    [
        (False, [1, 2], "2 (the last; validation did not choose it)"),
        (True, [1, 2], "1 (the best in validation)"),
        (True, [float("nan")] * 2, "2 (the last; validation did not choose it)"),
    ],
)
def test_the_log_says_which_was_written_and_where(tmp_path, monkeypatch, caplog, validate, values, which):
    """With the whole path, also where a relative one is given."""
    monkeypatch.chdir(tmp_path)
    with caplog.at_level("INFO"):
        run(Path("models/encoder.safetensors"), values, validate=validate)
    assert f"encoder of epoch {which} written to {tmp_path / 'models/encoder.safetensors'}." in caplog.text


def test_the_encoder_of_the_best_validation(path, monkeypatch):
    monkeypatch.setattr(module, "config_digest", lambda: "abc")
    run(path, [3, 1, 2])
    assert weight(path) == (1, 2) and files(path) == [path.name]
    record = read_encoder(path)[1]
    assert record["preparation"] == preparation_record(IMAGES) and record["spatial_size"] == [32, 32, 32]
    assert (record["method"], record["data"], record["val_loss"]) == ("MAE", "145 brains", 1.0)
    assert record["config_digest"] == "abc" and record["format"] == 2


def test_without_validation_that_of_the_last_epoch(path):
    run(path, [3, 1, 2], validate=False)
    assert weight(path) == (2, 3) and "val_loss" not in read_encoder(path)[1]


@pytest.mark.parametrize(("validate", "expected"), [(True, (3, 1)), (False, (4, 2))])
def test_a_new_run_forgets_the_best_of_an_old_one(path, validate, expected):
    with pytest.raises(Killed):
        run(path, [0.1, 5], kill=2)
    assert files(path) == [".encoder.best.safetensors"]
    run(path, [3, 4], validate)
    assert weight(path) == expected and files(path) == [path.name]


@pytest.mark.parametrize("validate", [True, False])
def test_a_killed_run_leaves_no_encoder_and_resumes_to_the_best(path, validate):
    values = [3, 1, 2, 4]
    with pytest.raises(Killed):
        run(path, values, validate, kill=3)
    assert not path.exists()
    run(path, values, validate, resume=True)
    assert weight(path) == ((1, 2) if validate else (4, 4)) and files(path) == [path.name]


@pytest.mark.parametrize("validate", [True, False])
def test_a_finished_run_resumed_leaves_its_file_alone(path, validate):
    run(path, [3, 1, 2], validate)
    before = path.read_bytes()
    run(path, [9, 9, 9], validate, resume=True)
    assert path.read_bytes() == before


def test_a_run_killed_between_its_last_checkpoint_and_its_end_writes_the_encoder_on_resume(path):
    run(path, [3, 1, 2], validate=False)
    whole = path.read_bytes()
    path.unlink()
    run(path, [9, 9, 9], validate=False, resume=True)
    assert path.read_bytes() == whole


def test_a_kill_while_writing_leaves_the_old_file(path, monkeypatch):
    run(path, [3, 2])
    before = path.read_bytes()

    def fail(state, file, metadata):
        with open(file, "wb") as half:
            half.write(b"half")
        raise Killed

    monkeypatch.setattr(encoder_file, "save_file", fail)
    with pytest.raises(Killed):
        run(path, [1, 7])
    assert path.read_bytes() == before and files(path) == [path.name]
    monkeypatch.undo()
    run(path, [1, 7])
    assert weight(path) == (1, 1) and files(path) == [path.name]


def test_each_best_encoder_is_written_once(path, monkeypatch):
    """Whole, with digest and scans: the end of the run gives it its name and reads no tensor."""
    writes, save = [], encoder_file.save_file

    def count(state, file, metadata):
        writes.append(metadata["record"])
        save(state, file, metadata=metadata)

    monkeypatch.setattr(encoder_file, "save_file", count)
    run(path, [3, 1, 2])
    assert len(writes) == 2 and all('"config_digest"' in record for record in writes)
    assert weight(path) == (1, 2)


def test_only_rank_0_writes(path, monkeypatch):
    monkeypatch.setattr(module.idist, "get_rank", lambda: 1)
    run(path, [3, 1])
    assert not path.exists()
