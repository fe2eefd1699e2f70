from __future__ import annotations

import argparse

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from torch import nn

from common.fingerprint import FingerprintInTheMaking
from common.handlers import ModelLoader
from common.weights.model_file import load_model, save_model


def make(width=3, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.pt"


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s, "epoch": 3}])
def test_loads_when_the_engine_starts(path, wrap):
    source, target = make(), make(seed=1)
    torch.save(wrap(source.state_dict()), path)
    engine, seen = Engine(lambda engine, batch: seen.append(target[0].weight.detach().clone())), []
    ModelLoader(path, target).attach(engine)
    engine.run([0], max_epochs=1)
    assert torch.equal(seen[0], source[0].weight)
    assert all(
        torch.equal(a, b) for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True)
    )


def test_the_whole_path_is_logged_where_a_relative_one_is_given(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    torch.save(make().state_dict(), "model.pt")
    engine = Engine(lambda engine, batch: None)
    ModelLoader("model.pt", make()).attach(engine)
    with caplog.at_level("INFO"):
        engine.run([0], max_epochs=1)
    assert f"network read from {tmp_path / 'model.pt'}." in caplog.text


def missing(path):
    pass


def truncated(path):
    torch.save(make().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-100])


def pickled(path):
    torch.save(argparse.Namespace(lr=1), path)


def other_shape(path):
    torch.save(make(4).state_dict(), path)


def fewer(path):
    torch.save({k: v for k, v in make().state_dict().items() if k != "0.bias"}, path)


def more(path):
    torch.save(make().state_dict() | {"2.bias": torch.zeros(1)}, path)


def a_training_checkpoint(path):
    torch.save({"epoch": 3, "objects": {"network": make().state_dict()}}, path)


def a_list(path):
    torch.save([1, 2], path)


def a_tensor(path):
    torch.save(torch.zeros(2), path)


def numbers(path):
    torch.save(dict.fromkeys(make().state_dict(), 1), path)


def a_nan(path):
    state = make().state_dict()
    state["0.weight"][1, 1] = float("nan")
    torch.save(state, path)


def integers(path):
    torch.save({k: v.long() for k, v in make().state_dict().items()}, path)


def complex_numbers(path):
    torch.save(make().state_dict() | {"1.bias": torch.zeros(3, dtype=torch.complex64)}, path)


@pytest.mark.parametrize(
    ("write", "error", "message"),
    [
        (missing, FileNotFoundError, "no model {path}: train one with configs/train.json, or set model_path"),
        (truncated, ValueError, "{path} is not a readable checkpoint"),
        (pickled, ValueError, "{path} holds Python objects beside tensors"),
        (
            other_shape,
            ValueError,
            r"{path} belongs to another network: 1 of 7 .* 0.weight, \(4, 2\) in the file and \(3, 2\) here\)",
        ),
        (fewer, ValueError, r"6 of 7 .*for example, 0.bias\); use the networks/, tasks/, datasets/ and presets/"),
        (more, ValueError, r"7 of 7 .*for example, 2.bias\)"),
        (a_training_checkpoint, ValueError, "0 of 7"),
        (a_list, ValueError, "{path} holds no state dict"),
        (a_tensor, ValueError, "{path} holds no state dict"),
        (numbers, ValueError, "0 of 7"),
        (a_nan, ValueError, "{path}: 0.weight holds values that are not finite"),
        (integers, ValueError, "{path}: 0.weight holds values of type int64, but the network has floats"),
        (complex_numbers, ValueError, "{path}: 1.bias holds values of type complex64"),
    ],
)
def test_files_that_do_not_fit_leave_the_network_alone(path, write, error, message):
    write(path)
    net = make(seed=1)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(error, match=message.format(path=path)):
        load_model(net, path)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_an_evaluation_warns_of_scans_unlike_those_of_the_training(tmp_path, path, caplog):
    random, items = np.random.default_rng(0), []
    for number in range(5):
        values = random.uniform(0, 100, (8, 9, 10)) - (1000 if number > 2 else 0)
        items.append({"image": str(tmp_path / f"{number}.nii.gz")})
        nib.save(nib.Nifti1Image(values.astype(np.float32), np.eye(4)), items[-1]["image"])
    save_model(make().state_dict(), path, FingerprintInTheMaking(items[:2]).record())
    for scans, said in ((items[1:], 1), (items[:3], 0)):
        caplog.clear()
        engine = Engine(lambda engine, batch: None)
        ModelLoader(path, make(), scans=scans).attach(engine)
        engine.run([0], max_epochs=1)
        assert caplog.text.count("2 of 4 checked scans of the test list are unlike those that") == said
        assert caplog.text.count(f"(modality), such as {items[3]['image']}: it has intensities as CT has") == said
