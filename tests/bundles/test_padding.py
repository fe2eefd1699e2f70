"""What stands around a volume: its background, and no class but it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor

from common.data import load_datalist

CONFIGS = Path(__file__).resolve().parents[2] / "bundles"
LARGE = {"spacing": [4.0] * 3, "image_size": [80] * 3, "map_size": [80] * 3, "roi_size": [80] * 3}
SHAPE = {"image_size": [16, 16], "slices": 5}


def parsed(bundle: str, *names: str, **values) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / bundle / "configs" / name) for name in names])
    parser.update({key: value for key, value in values.items() if key in parser.get()})
    return parser


def faces(volume: torch.Tensor) -> torch.Tensor:
    """The outermost voxels of a volume (1, *spatial), which no scan of the sample reaches."""
    return torch.cat([volume.movedim(axis, 0)[[0, -1]].flatten() for axis in (1, 2, 3)])


@pytest.mark.parametrize(
    ("bundle", "files"),
    [
        ("simtrot", ["train.json", "datasets/sample.json"]),
        ("simtrot", ["pretrain.json", "datasets/sample.json"]),
        ("pretrain_once", ["train.json", "datasets/sample.json"]),
        ("pretrain_once", ["pretrain.json", "datasets/sample.json"]),
        ("medical_transformer", ["train.json", "tasks/structures4.json", "datasets/sample.json"]),
        ("medical_transformer", ["pretrain.json", "datasets/sample.json"]),
        ("ssl3d", ["train.json", "datasets/sample.json"]),
        ("ssl3d", ["pretrain.json", "datasets/sample.json", "pretexts/mae.json"]),
    ],
)
def test_padding_is_the_background_and_of_its_class(cohort, bundle, files):
    parser = parsed(bundle, *files, **LARGE, dataset_dir=str(cohort))
    where = "deterministic_transforms"
    if where not in parser.get():
        where = f"train#{where}"
    item = load_datalist(cohort / "structures4.json", check="none")["training"][0]
    for step in parser.get_parsed_content(where):
        item = step(item)
    image = item["image"]
    assert image.shape == (1, 80, 80, 80)
    assert (faces(image) == image.min()).all()
    if "train.json" in files:
        assert not faces(item["label"]).any() and item["label"].any()
        assert image.min() < image[item["label"] > 0].median()
    else:
        assert image.min() < image.mean()


def background(bundle: str, value: float, shape: list[int], **parts) -> MetaTensor:
    """A crop of background behind a bundle's augmentation, with the chances of `parts` for some of its steps."""
    parser = parsed(bundle, "train.json", **SHAPE)
    item = {key: MetaTensor(torch.full((1, *shape), number)) for key, number in (("image", value), ("label", 0.0))}
    for number, step in enumerate(parser["augmentation"]):
        if not any(name in step["_target_"] for name in ("Zoom", "Crop", "Affine", "Flip", "Rotate", "Shift", "Pad")):
            continue
        if "prob" in step:
            parser[f"augmentation#{number}#prob"] = 1.0
        item = parser.get_parsed_content(f"augmentation#{number}")(item)
    assert not item["label"].any()
    return item["image"]


@pytest.mark.parametrize(
    ("bundle", "value", "shape"),
    [("ssl3d", -1.5, [16, 16, 16]), ("simtrot", 0.0, [16, 16, 16]), ("transseg", -1.0, [9, 8, 5])],
)
def test_augmentation_leaves_a_crop_of_background_one_value(bundle, value, shape):
    """It turned corners into mean tissue, or padded with what the shift of intensities had left behind."""
    for _ in range(4):
        made = background(bundle, value, shape)
        assert made.max() - made.min() < 1e-4
