from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from common.networks import OnnxNet

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra onnx)")
pytest.importorskip("onnx", reason="onnx is not installed (extra onnx)")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A small net, and its files of batch size 1, 2 and any."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv3d(2, 3, 3, padding=1), nn.InstanceNorm3d(3), nn.ReLU(), nn.Conv3d(3, 4, 1)).eval()
    folder = tmp_path_factory.mktemp("onnx")
    files = {}
    for batch in (1, 2, "any"):
        files[batch] = folder / f"{batch}.onnx"
        free = {"image": {0: "batch"}, "pred": {0: "batch"}} if batch == "any" else None
        example = torch.rand(batch if batch != "any" else 2, 2, 6, 7, 8)
        names = {"input_names": ["image"], "output_names": ["pred"]}
        torch.onnx.export(net, (example,), str(files[batch]), dynamo=False, dynamic_axes=free, **names)
    return net, files


@pytest.mark.parametrize(("file", "batch"), [("any", 1), ("any", 3), (1, 1), (1, 3), (2, 4)])
def test_computes_what_the_net_does(exported, file, batch):
    net, files = exported
    image = torch.rand(batch, 2, 6, 7, 8)
    onnx = OnnxNet(files[file]).eval()
    with torch.no_grad():
        torch.testing.assert_close(onnx(image), net(image), atol=1e-5, rtol=1e-5)
        channels_last = image.to(memory_format=torch.channels_last_3d)
        torch.testing.assert_close(onnx(channels_last.double()), net(image), atol=1e-5, rtol=1e-5)
    assert list(onnx.parameters()) == []


@pytest.mark.parametrize(
    ("file", "shape"), [("any", (1, 2, 6, 7, 9)), ("any", (1, 1, 6, 7, 8)), (2, (3, 2, 6, 7, 8)), ("any", (1, 2, 6, 7))]
)
def test_another_shape_is_refused(exported, file, shape):
    _, files = exported
    with pytest.raises(ValueError, match=rf"{file}.onnx takes images of the shape \w+x2x6x7x8, not .*: set roi_size"):
        OnnxNet(files[file])(torch.rand(shape))


def test_files_that_are_missing_or_none(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no ONNX file .*model.onnx: write it with .* or set onnx_path"):
        OnnxNet(tmp_path / "model.onnx")
    (tmp_path / "model.onnx").write_bytes(b"no net")
    with pytest.raises(ValueError, match=r"model.onnx is not an ONNX file that onnxruntime can read \(.+\)\.$"):
        OnnxNet(tmp_path / "model.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"pip install onnxruntime` \(extra onnx\)"):
        OnnxNet(tmp_path / "model.onnx")
