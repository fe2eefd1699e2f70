"""Real scans through the transforms of the bundle `transseg`, as its configuration states them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from common.data.prepare import prepare

DATA = Path(__file__).parents[3] / "shared" / "data"
CONFIGS = Path(__file__).parents[2] / "bundles" / "transseg" / "configs"


@pytest.fixture
def windows(tmp_path):
    source = DATA / "hippocampus"
    if not source.is_dir():
        pytest.skip(f"the real scans are not at {source}")
    prepare("decathlon", source, tmp_path / "hippocampus.json", check="none", label_scheme="msd_hippocampus")
    parser = ConfigParser()
    names = ("train.json", "datasets/hippocampus.json", "presets/small.json")
    parser.read_config([str(CONFIGS / name) for name in names])
    parser.update({"dataset_dir": str(tmp_path), "num_workers": 0, "train#dataset#data": "$@data['training'][:2]"})
    return parser.get_parsed_content("train#dataset")


def test_hippocampus(windows):
    torch.manual_seed(0)
    assert len(windows) == sum(volume["image"].shape[-1] for volume in (windows.volumes[0], windows.volumes[1]))
    for volume in (windows.volumes[0], windows.volumes[1]):
        assert volume["image"].shape == volume["label"].shape and volume["image"].shape[1:3] == (96, 96)
        assert volume["image"].min() == -1 and volume["image"].max() == 1
        assert set(torch.unique(volume["label"]).tolist()) == {0, 1, 2}
    for number in (0, len(windows) // 2, len(windows) - 1):
        item = windows[number]
        assert item["image"].shape == (1, 96, 96, 5) and item["label"].shape == (1, 96, 96, 1)
        assert torch.isfinite(item["image"]).all() and item["image"].abs().max() <= 1.11  # shifted by up to 0.1
        assert item["image"].meta["filename_or_obj"].endswith(".nii.gz")
