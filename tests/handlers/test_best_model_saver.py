from __future__ import annotations

import operator
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Loss
from monai.engines import SupervisedEvaluator
from monai.handlers import IgniteMetricHandler, from_engine
from monai.transforms import AsDiscreted
from torch import nn

from common.handlers import BestModelSaver
from common.handlers.best_model_saver import best_metric
from common.metrics import ClassDice


def run(path, values, metric_cmp_fn=operator.lt, interval=1):
    """A run whose network holds `values[epoch - 1]` and whose validation loss is that value."""
    net = nn.Linear(1, 1, bias=False)
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"), val_data_loader=[{"image": torch.ones(1, 1), "label": torch.zeros(1, 1)}],
        network=net, metric_cmp_fn=metric_cmp_fn, decollate=False, val_handlers=[BestModelSaver(path, net)],
        key_val_metric={"val_loss": Loss(nn.functional.l1_loss, output_transform=operator.itemgetter("pred", "label"))},
    )  # fmt: skip
    trainer, written = Engine(lambda engine, batch: None), []

    @trainer.on(Events.EPOCH_COMPLETED)
    def validate():
        nn.init.constant_(net.weight, values[trainer.state.epoch - 1])
        if trainer.state.epoch % interval == 0:
            evaluator.run(trainer.state.epoch)
        written.append(torch.load(path, weights_only=True)["weight"].item() if path.exists() else None)

    trainer.run([0], max_epochs=len(values))
    return written, evaluator


@pytest.mark.parametrize(
    ("compare", "interval", "expected"),
    [
        (operator.lt, 1, [3, 1, 1, 1, 0.5]),
        (operator.gt, 1, [3, 3, 3, 4, 4]),
        (operator.lt, 2, [None, 1, 1, 1, 1]),
    ],
)
def test_the_file_is_the_best_so_far(tmp_path, caplog, compare, interval, expected):
    path = tmp_path / "models" / "model.pt"
    with caplog.at_level("INFO"):
        written, evaluator = run(path, [3, 1, 2, 4, 0.5], compare, interval)
    assert written == expected
    assert best_metric(evaluator) == ("val_loss", expected[-1])
    assert f"model of epoch 2 written to {path}." in caplog.text or compare is operator.gt


@pytest.mark.parametrize("compare", [operator.lt, operator.gt])
def test_nan_is_no_best_metric(tmp_path, caplog, compare):
    """The latest is kept until there is a number, which then is not given up for NaN."""
    nan = float("nan")
    written, evaluator = run(tmp_path / "model.pt", [nan, nan, 2, nan], compare)
    assert str(written) == str([nan, nan, 2.0, 2.0])
    assert best_metric(evaluator) == ("val_loss", 2) and evaluator.state.best_metric_epoch == 3
    assert caplog.text.count("is NaN, so no epoch is the best and the latest is kept") == 2
    assert "val_loss of epoch 2" in caplog.text and "validation list (config id `data`)" in caplog.text
    caplog.clear()
    run(tmp_path / "model.pt", [nan, 5, 7], lambda new, old: False)
    assert torch.load(tmp_path / "model.pt", weights_only=True)["weight"].item() == 5


def test_the_whole_path_is_logged_where_a_relative_one_is_given(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    with caplog.at_level("INFO"):
        run(Path("models/model.pt"), [3])
    assert f"model of epoch 1 written to {tmp_path / 'models/model.pt'}." in caplog.text


def test_only_rank_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("common.handlers.best_model_saver.idist.get_rank", lambda: 1)
    assert run(tmp_path / "model.pt", [3, 1])[0] == [None, None]


def test_a_failure_leaves_the_last_best(tmp_path, monkeypatch):
    save, path = torch.save, tmp_path / "model.pt"

    def fail(content, file):
        if content["weight"].item() == 1:
            file.write(b"half")
            raise OSError("disk full")
        save(content, file)

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        run(path, [3, 1])
    assert torch.load(path, weights_only=True)["weight"].item() == 3
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]


@pytest.mark.parametrize("foreground", [False, True])
def test_no_epoch_is_the_best_of_a_list_without_foreground(tmp_path, caplog, foreground):
    """A net that invents structures scores 0, one that finds nothing no number: the first 0 was the best for ever."""
    label = torch.zeros(1, 2, 4, 4, 4)
    label[:, 0] = 1
    if foreground:
        label[0, :, 0] = torch.tensor([0.0, 1.0])[:, None, None]
    net = nn.Conv3d(1, 2, 1)
    path = tmp_path / "model.pt"
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"), val_data_loader=[{"image": torch.ones(1, 1, 4, 4, 4), "label": label}],
        network=net, val_handlers=[BestModelSaver(path, net)],
        postprocessing=AsDiscreted("pred", argmax=True, to_onehot=2),
        key_val_metric={"dice": IgniteMetricHandler(ClassDice(), output_transform=from_engine(["pred", "label"]))},
    )  # fmt: skip
    kept = []
    for epoch, predicted in enumerate([1, 0, 1], start=1):
        nn.init.zeros_(net.weight)
        net.bias.data = torch.tensor([1.0 - predicted, float(predicted)]) * epoch
        evaluator.run(epoch)
        kept.append(torch.load(path, weights_only=True)["bias"].max().item())
    assert kept == ([1, 1, 1] if foreground else [1, 2, 3])
    words = "None of the 1 labels of the validation list (config id `data`) has any foreground, so"
    assert caplog.text.count(words) == (0 if foreground else 3)
