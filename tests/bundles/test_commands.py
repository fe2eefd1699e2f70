"""MONAI's other verbs on the bundle; test_pack.py runs it packed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from monai.bundle import ConfigParser, init_bundle, verify_metadata, verify_net_in_out

ROOT = Path(__file__).resolve().parents[2]
BUNDLES = sorted(path.name for path in (ROOT / "bundles").iterdir())
BUNDLE = ROOT / "bundles" / "pretrain_once"
CONFIGS = BUNDLE / "configs"
SCHEMA = ROOT.parent / "shared" / "schema" / "meta_schema_20240725.json"


@pytest.mark.parametrize("bundle", BUNDLES)
def test_verify_metadata(bundle, tmp_path):
    pytest.importorskip("jsonschema")
    if not SCHEMA.is_file():
        pytest.skip("MONAI's metadata schema is not at hand")
    shutil.copyfile(SCHEMA, tmp_path / "schema.json")
    metadata = ROOT / "bundles" / bundle / "configs" / "metadata.json"
    verify_metadata(meta_file=str(metadata), filepath=str(tmp_path / "schema.json"))


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


@pytest.mark.parametrize("bundle", BUNDLES)
def test_the_page_of_verbs_says_the_windows_of_inference(bundle):
    page = (ROOT / "docs" / "verbs.md").read_text(encoding="utf-8")
    [window] = re.findall(rf"^\| `{bundle}` \| `(\[.*\])` \|$", page, re.MULTILINE)
    folder = ROOT / "bundles" / bundle / "configs"
    size = ConfigParser(json.loads((folder / "inference.json").read_text())).get_parsed_content("roi_size")
    image = json.loads((folder / "metadata.json").read_text())["network_data_format"]["inputs"]["image"]
    assert json.loads(window) == [1, image["num_channels"], *size]
    assert image["spatial_shape"] == [int(voxels) for voxels in size]


def test_the_page_of_verbs_names_verbs_and_files_that_exist():
    import monai.bundle.__main__ as monai_bundle

    page = (ROOT / "docs" / "verbs.md").read_text(encoding="utf-8")
    verbs = set(re.findall(r"^python -m monai.bundle (\w+)", page, re.MULTILINE))
    assert {"run", "verify_metadata", "verify_net_in_out", "ckpt_export", "onnx_export", "trt_export"} < verbs
    assert "init_bundle" in verbs and all(hasattr(monai_bundle, verb) for verb in verbs)
    for name in set(re.findall(r"configs/[\w/]+\.json", page)):
        assert all((ROOT / "bundles" / bundle / name).is_file() for bundle in BUNDLES), name


def test_init_bundle(tmp_path):
    init_bundle(str(tmp_path / "mine"))
    assert (tmp_path / "mine" / "configs" / "metadata.json").is_file()
