"""Exported nets: what they compute, and `inference.json` with them in place of the torch one."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ckpt_export, onnx_export, verify_net_in_out

from common.checks import final_sentence
from common.networks import OnnxNet

ROOT = Path(__file__).resolve().parents[2]
SCRIPTED = ("pretrain_once",)  # TorchScript's compiler takes no other net of theirs
OLDER_EXPORTER = {"input_names": ["image"], "output_names": ["pred"], "dynamo": False}
FREE_BATCH = {"image": {0: "batch"}, "pred": {0: "batch"}}
# It is given runs of slices, the last of them shorter.
FREE = {"transseg": {"image": {0: "batch", 4: "slices"}, "pred": {0: "batch", 4: "predicted"}}}


def overlays(small_files, bundle: str) -> dict:
    """What MONAI's commands take to build the small net of a bundle."""
    configs = ROOT / "bundles" / bundle / "configs"
    return {
        "net_id": "network_def",
        "meta_file": str(configs / "metadata.json"),
        "config_file": [str(configs / name) for name in ("inference.json", *small_files[bundle])],
    }


@pytest.fixture(scope="module")
def infer(run_bundle, small_files) -> Callable:
    """``infer(bundle, output, *files, **overrides)`` runs inference on the cohort and returns its label maps."""

    def run(bundle: str, output: Path, *files: str, **overrides) -> dict[str, np.ndarray]:
        run_bundle(
            "inference.json",
            *small_files[bundle],
            *files,
            bundle=bundle,
            workflow_type="inference",
            output_dir=str(output),
            device="cpu",  # where onnxruntime computes,
            amp=False,  # in float32
            **overrides,
        )
        return {path.name: np.asarray(nib.load(path).dataobj) for path in sorted(output.rglob("*_seg.nii.gz"))}

    return run


@pytest.fixture(scope="module")
def made(run_bundle, small_files, small_model, infer, tmp_path_factory) -> Callable:
    """``made(bundle)``: a folder with `models/model.pt` of the small net, that net, and its label maps, made once."""
    kept: dict[str, tuple[Path, torch.nn.Module, dict[str, np.ndarray]]] = {}

    def make(bundle: str):
        if bundle not in kept:
            root = tmp_path_factory.mktemp(bundle)
            (root / "models").mkdir()
            shutil.copy(small_model(bundle), root / "models/model.pt")
            workflow = run_bundle(
                "inference.json", *small_files[bundle], bundle=bundle, workflow_type="inference", execute=False
            )
            net = workflow.parser.get_parsed_content("network_def").cpu().eval()
            net.load_state_dict(torch.load(root / "models/model.pt", weights_only=True))
            kept[bundle] = root, net, infer(bundle, root / "torch", bundle_root=str(root))
        return kept[bundle]

    return make


def compute_the_same(exported, net, window: list[int]) -> None:
    for batch in (1, 3):  # inferers batch windows, however many the export saw
        image = torch.rand(batch, *window)
        with torch.no_grad():
            expected = net(image)
            torch.testing.assert_close(exported(image), expected, atol=3e-5 * float(expected.abs().max()), rtol=1e-4)


def are_the_same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert ours.keys() == theirs.keys() and len(ours) == 2
    for name, labels in ours.items():
        assert len(np.unique(labels)) > 2
        # Where two classes are as likely, the last digit decides (docs/exports.md: up to 35 of 76,800 voxels).
        assert (theirs[name] != labels).mean() < 5e-4, name


@pytest.mark.way("TorchScript")
def test_torchscript_gives_the_same_label_maps(bundle, small, small_files, made, infer, tmp_path):
    root, net, maps = made(bundle)
    window = small[bundle].window
    metadata = json.loads((ROOT / "bundles" / bundle / "configs/metadata.json").read_text())
    slices = metadata["network_data_format"]["outputs"]["pred"]["spatial_shape"][-1]
    pred = [*window[1:3], 1] if slices == 1 else window[1:]  # of a window of slices the one in the middle
    formats = "_meta_#network_data_format"
    shapes = {
        f"{formats}#inputs#image#spatial_shape": window[1:],
        f"{formats}#inputs#image#num_channels": window[0],
        f"{formats}#outputs#pred#spatial_shape": pred,
        f"{formats}#outputs#pred#num_channels": 5,
    }
    verify_net_in_out(**overlays(small_files, bundle), device="cpu", **shapes)
    file = str(tmp_path / "model.ts")
    tracing = {"use_trace": bundle not in SCRIPTED, "input_shape": [1, *window]}
    checkpoint = str(root / "models/model.pt")
    ckpt_export(filepath=file, ckpt_file=checkpoint, **tracing, **overlays(small_files, bundle))
    compute_the_same(torch.jit.load(file), net, window)
    in_place = {"network": f"$torch.jit.load({file!r})", "model_path": file, "handlers#0#network": "@network"}
    are_the_same(maps, infer(bundle, tmp_path / "maps", **in_place))


@pytest.mark.way("ONNX")
def test_onnx_gives_the_same_label_maps(bundle, small, small_files, made, infer, tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra onnx)")
    pytest.importorskip("onnx", reason="onnx is not installed (extra onnx)")
    root, net, maps = made(bundle)
    window = small[bundle].window
    onnx_export(
        filepath=str(root / "models/model.onnx"),
        ckpt_file=str(root / "models/model.pt"),
        input_shape=[2, *window],
        use_trace=True,
        converter_kwargs=OLDER_EXPORTER | {"dynamic_axes": FREE.get(bundle, FREE_BATCH)},
        **overlays(small_files, bundle),
    )
    compute_the_same(OnnxNet(root / "models/model.onnx"), net, window)
    are_the_same(maps, infer(bundle, tmp_path / "maps", "inference_onnx.json", bundle_root=str(root)))


def test_trt_without_a_gpu_computes_with_torch(made, infer, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("here it would compile")
    root, _, maps = made("pretrain_once")
    theirs = infer("pretrain_once", tmp_path, "inference_trt.json", bundle_root=str(root))
    assert maps.keys() == theirs.keys() and all(np.array_equal(maps[name], theirs[name]) for name in maps)


@pytest.fixture(scope="module")
def small_file(tmp_path_factory) -> Path:
    """An ONNX file of a net of one layer, for windows of pretrain_once's small form and five classes."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra onnx)")
    pytest.importorskip("onnx", reason="onnx is not installed (extra onnx)")
    file = tmp_path_factory.mktemp("onnx") / "model.onnx"
    net, image = torch.nn.Conv3d(1, 5, 1), torch.rand(2, 1, 32, 48, 32)
    torch.onnx.export(net, (image,), str(file), dynamic_axes=FREE_BATCH, **OLDER_EXPORTER)
    return file


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"roi_size": [32, 32, 32]}, r"model\.onnx takes images of the shape batchx1x32x48x32, not .*: set roi_size"),
        ({"num_classes": 3}, r"model\.onnx predicts 5 channels, but 3 are needed: it belongs to another net"),
        ({"onnx_path": "nowhere.onnx"}, r"no ONNX file .*nowhere\.onnx: write it with"),
        ({}, r"run `pip install onnxruntime` \(extra onnx\), or leave out inference_onnx\.json"),
    ],
    ids=["another window", "another net", "no file", "no onnxruntime"],
)
def test_what_cannot_run_is_refused_in_a_sentence(infer, small_file, tmp_path, monkeypatch, overrides, sentence):
    if not overrides:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(Exception) as refused:
        infer("pretrain_once", tmp_path, "inference_onnx.json", **{"onnx_path": str(small_file)} | overrides)
    assert re.search(sentence, final_sentence(refused.value))
