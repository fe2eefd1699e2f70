"""MONAI's other verbs on the bundle; test_pack.py runs it packed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from monai.bundle import verify_metadata, verify_net_in_out

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


def test_verify_net_in_out(tiny):
    """Swin UNETR; test_exports.py verifies the net of each bundle."""
    size = json.loads(Path(tiny["swin_unetr"]).read_text())["roi_size"]
    formats = "_meta_#network_data_format"
    overrides = {f"{formats}#inputs#image#spatial_shape": size, f"{formats}#outputs#pred#spatial_shape": size}
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(CONFIGS / "metadata.json"),
        config_file=[str(CONFIGS / "inference.json"), tiny["swin_unetr"]],
        device="cpu",
        **overrides,
    )
