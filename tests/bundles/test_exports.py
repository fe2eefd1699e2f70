"""`inference.json` with an exported net in place of the torch one."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import onnx_export

CONFIGS = Path(__file__).resolve().parents[2] / "bundles" / "pretrain_once" / "configs"
ANY_BATCH = {"image": {0: "batch"}, "pred": {0: "batch"}}


@pytest.fixture(scope="module")
def bundle_root(run_bundle, tiny, tmp_path_factory):
    """A folder with `models/model.pt` of the tiny UNETR."""
    root = tmp_path_factory.mktemp("bundle")
    workflow = run_bundle("inference.json", tiny["unetr"], workflow_type="inference", execute=False)
    net = workflow.parser.get_parsed_content("network_def")
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    (root / "models").mkdir()
    torch.save(net.state_dict(), root / "models/model.pt")
    return root


def infer(run_bundle, tiny, root, output, *overlays):
    settings = {"bundle_root": str(root), "output_dir": str(output), "task": "structures4"}
    run_bundle("inference.json", tiny["unetr"], *overlays, workflow_type="inference", **settings)
    return {path.name: np.asarray(nib.load(path).dataobj) for path in sorted(output.rglob("*_seg.nii.gz"))}


def test_onnx_gives_the_same_label_maps(run_bundle, tiny, bundle_root, tmp_path):
    """Through the same windows, several at once, on the images of the cohort."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra onnx)")
    pytest.importorskip("onnx", reason="onnx is not installed (extra onnx)")
    onnx_export(
        net_id="network_def",
        filepath=str(bundle_root / "models/model.onnx"),
        ckpt_file=str(bundle_root / "models/model.pt"),
        meta_file=str(CONFIGS / "metadata.json"),
        config_file=[str(CONFIGS / "inference.json"), tiny["unetr"]],
        input_shape=[2, 1, 32, 48, 32],
        use_trace=True,
        converter_kwargs={
            "input_names": ["image"],
            "output_names": ["pred"],
            "dynamic_axes": ANY_BATCH,
            "dynamo": False,
        },
    )
    ours = infer(run_bundle, tiny, bundle_root, tmp_path / "torch")
    theirs = infer(run_bundle, tiny, bundle_root, tmp_path / "onnx", "inference_onnx.json")
    assert ours.keys() == theirs.keys() and len(ours) == 2
    for name, labels in ours.items():
        assert len(np.unique(labels)) > 2
        # Where two classes are as likely, the last digit decides.
        assert (theirs[name] != labels).mean() < 1e-4, name


def test_trt_without_a_gpu_computes_with_torch(run_bundle, tiny, bundle_root, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("here it would compile")
    ours = infer(run_bundle, tiny, bundle_root, tmp_path / "torch")
    theirs = infer(run_bundle, tiny, bundle_root, tmp_path / "trt", "inference_trt.json")
    assert ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)
