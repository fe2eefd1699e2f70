"""MONAI's other verbs on the bundle; test_pack.py runs it packed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from monai.bundle import ckpt_export, verify_metadata, verify_net_in_out

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "bundles" / "pretrain_once"
CONFIGS = BUNDLE / "configs"
SCHEMA = ROOT.parent / "shared" / "schema" / "meta_schema_20240725.json"


def test_verify_metadata(tmp_path):
    pytest.importorskip("jsonschema")
    if not SCHEMA.is_file():
        pytest.skip("MONAI's metadata schema is not at hand")
    shutil.copyfile(SCHEMA, tmp_path / "schema.json")
    verify_metadata(meta_file=str(CONFIGS / "metadata.json"), filepath=str(tmp_path / "schema.json"))


@pytest.mark.parametrize("network", ["unetr", "swin_unetr"])
def test_verify_net_in_out(tiny, network):
    size = json.loads(Path(tiny[network]).read_text())["roi_size"]
    formats = "_meta_#network_data_format"
    overrides = {f"{formats}#inputs#image#spatial_shape": size, f"{formats}#outputs#pred#spatial_shape": size}
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(CONFIGS / "metadata.json"),
        config_file=[str(CONFIGS / "inference.json"), tiny[network]],
        device="cpu",
        **overrides,
    )


def test_ckpt_export(tiny, run_bundle, tmp_path):
    workflow = run_bundle("inference.json", tiny["unetr"], workflow_type="inference", execute=False)
    network = workflow.parser.get_parsed_content("network_def").eval()
    torch.save(network.state_dict(), tmp_path / "model.pt")
    ckpt_export(
        net_id="network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(tmp_path / "model.pt"),
        meta_file=str(CONFIGS / "metadata.json"),
        config_file=[str(CONFIGS / "inference.json"), tiny["unetr"]],
    )
    exported = torch.jit.load(tmp_path / "model.ts")
    image = torch.rand(1, 1, 32, 48, 32)
    with torch.no_grad():
        torch.testing.assert_close(exported(image), network(image))
