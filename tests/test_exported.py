"""The record of a model in exported nets, and what inference does with it."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine
from monai.transforms import Orientationd
from torch import nn

from common.checkpoint_file import checked_record, save_checkpoint
from common.exported import add_model_record
from common.handlers import ModelLoader
from common.networks import OnnxNet
from common.preparation import preparation_record


def images(axcodes="RAS"):
    return Orientationd("image", axcodes, labels=None)


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.pt"
    save_checkpoint(nn.Conv3d(1, 2, 1).state_dict(), path, {"preparation": preparation_record(images(), task="lung")})
    return path


def export(kind, folder):
    path, net, image = folder / f"model.{kind}", nn.Conv3d(1, 2, 1), torch.rand(1, 1, 2, 2, 2)
    if kind == "ts":
        torch.jit.save(torch.jit.trace(net, image), path, _extra_files={"metadata.json": "{}"})
        return path, lambda: torch.jit.load(path)
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra onnx)")
    pytest.importorskip("onnx", reason="onnx is not installed (extra onnx)")
    torch.onnx.export(net, (image,), str(path), dynamo=False)
    return path, lambda: OnnxNet(path)


@pytest.mark.parametrize("kind", ["ts", "onnx"])
def test_an_exported_net_of_other_images_is_refused(kind, model, tmp_path, caplog):
    caplog.set_level("INFO")
    path, load = export(kind, tmp_path)
    image = torch.rand(1, 1, 2, 2, 2)
    expected = load()(image)

    def run(axcodes, task="lung", **values):
        handler = ModelLoader(path, load(), images(axcodes), task=task, **values)
        engine = Engine(lambda engine, batch: None)
        handler.attach(engine)
        engine.run([0])

    run("LPS")
    assert f"{path} has no record of how its images were prepared" in caplog.text
    for _ in range(2):  # the second time there is nothing to do
        assert add_model_record(str(model), str(path)) == f"{path} has the record of {model}."
    torch.testing.assert_close(load()(image), expected)
    run("RAS")
    with pytest.raises(
        ValueError, match=rf"model\.{kind} was trained on images .*made with orientation RAS, the images have LPS"
    ):
        run("LPS")
    with pytest.raises(ValueError, match="made with task lung, the task has liver"):
        run("RAS", "liver")
    run("LPS", accept_preparation=True)
    if kind == "ts":
        extra = {"metadata.json": ""}
        torch.jit.load(path, _extra_files=extra)
        assert extra["metadata.json"] in ("{}", b"{}") and checked_record(path) == checked_record(model)


def test_what_cannot_be_done_is_said(model, tmp_path):
    path, _ = export("ts", tmp_path)
    torch.save(nn.Conv3d(1, 2, 1).state_dict(), tmp_path / "old.pt")
    (tmp_path / "broken.ts").write_text("no archive")
    (tmp_path / "broken.onnx").write_text("no net")
    for files, sentence in (
        ((tmp_path / "nowhere.pt", path), "nowhere.pt does not exist"),
        ((tmp_path / "old.pt", path), "old.pt has no record of how its images were prepared; train it again"),
        ((model, tmp_path / "broken.ts"), "broken.ts is not a file that torch wrote"),
    ):
        with pytest.raises((FileNotFoundError, ValueError), match=sentence):
            add_model_record(*map(str, files))
    add_model_record(str(model), str(path))
    save_checkpoint(nn.Conv3d(1, 2, 1).state_dict(), model, {"preparation": preparation_record(images("LPS"))})
    with pytest.raises(ValueError, match=r"model\.ts already has a record of another model: export the net again"):
        add_model_record(str(model), str(path))
    pytest.importorskip("onnx", reason="onnx is not installed (extra onnx)")
    with pytest.raises(ValueError, match=r"broken\.onnx is not a readable \.onnx file"):
        add_model_record(str(model), str(tmp_path / "broken.onnx"))
