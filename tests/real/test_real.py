"""One real scan of each kind through the fine-tuning transforms of the bundle, as its configuration states them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from common.data import load_datalist
from common.data.prepare import prepare

DATA = Path(__file__).parents[3] / "shared" / "data"
CONFIGS = Path(__file__).parents[2] / "bundles" / "pretrain_once" / "configs"


def folder(name: str) -> Path:
    path = DATA / name
    if not path.is_dir():
        pytest.skip(f"the real scans are not at {path}")
    return path


def transformed(item, overrides, *overlays):
    """The item after all training transforms and after all validation transforms."""
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / "train.json"), *(str(CONFIGS / overlay) for overlay in overlays)])
    parser.update(overrides)
    parser.parse()
    found = parser.get_parsed_content("train#preprocessing")(item)
    return found[0], parser.get_parsed_content("validate#preprocessing")(item)


def assert_usable(item, size, classes):
    image, label = item["image"], item["label"]
    assert image.shape == label.shape == (1, *size)
    assert image.dtype == torch.float32 and image.isfinite().all()
    assert image.min() >= -0.2 and image.max() <= 1.2 and image.std() > 0.05
    assert set(torch.unique(label).tolist()) - {-1} == set(range(classes))  # -1 is padding


@pytest.mark.parametrize("task", ["structures4.json", "skull.json"])
def test_ixi(tmp_path, task):
    prepare("ixi", folder("ixi"), tmp_path / "ixi.json", check="none")
    item = load_datalist(tmp_path / "ixi.json", check="none")["training"][0]
    overrides = {"spacing": [2.0, 2.0, 2.0], "image_size": [80, 96, 80], "roi_size": [64, 64, 64]}
    crop, whole = transformed(item, overrides, "datasets/ixi.json", f"tasks/{task}")
    classes = 5 if task == "structures4.json" else 2
    assert_usable(crop, (64, 64, 64), classes)
    assert all(n >= m for n, m in zip(whole["image"].shape[1:], (80, 96, 80), strict=True))
    assert_usable(whole, whole["image"].shape[1:], classes)
    # Labels lie on the anatomy: in T1, white matter is brighter than cortex, and CSF is darkest.
    if classes == 5:
        means = [whole["image"][whole["label"] == label].mean() for label in range(5)]
        assert means[4] < means[1] < means[3]
    assert torch.allclose(whole["image"].pixdim, torch.tensor([2.0, 2.0, 2.0], dtype=torch.float64))


def test_hippocampus(tmp_path):
    prepare("decathlon", folder("hippocampus"), tmp_path / "hippocampus.json", check="none")
    item = load_datalist(tmp_path / "hippocampus.json", check="none")["training"][0]
    overrides = {
        "image_size": [64, 64, 64], "roi_size": [48, 48, 48], "num_classes": 3, "label_map": {1: [1], 2: [2]},
    }  # fmt: skip
    crop, whole = transformed(item, overrides)
    assert crop["image"].shape == crop["label"].shape == (1, 48, 48, 48)
    assert_usable(whole, (64, 64, 64), 3)
