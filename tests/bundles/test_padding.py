"""What stands around a volume: it looks as its background does, and counts in neither losses nor scores."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from torch.nn import functional as F

from common.checks import first_cause
from common.data import load_datalist
from common.metrics import HD95, ClassDice

CONFIGS = Path(__file__).resolve().parents[2] / "bundles"
LARGE = {"spacing": [4.0] * 3, "image_size": [80] * 3, "map_size": [80] * 3, "roi_size": [80] * 3}
SHAPE = {"image_size": [16, 16], "slices": 5}
SAMPLE = "datasets/sample.json"
TUMOUR = "tasks/tumour.json"


def parsed(bundle: str, *names: str, **values) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / bundle / "configs" / name) for name in names])
    parser.update({key: value for key, value in values.items() if key in parser.get()})
    return parser


def first_item(cohort: Path, files: list[str]) -> dict:
    name = "lesion.json" if TUMOUR in files else "structures4.json"
    return load_datalist(cohort / name, check="none")["training"][0]


def faces(volume: torch.Tensor) -> torch.Tensor:
    """The outermost voxels (C, N) of a volume (C, *spatial), which no scan of the sample reaches."""
    return torch.cat([volume.movedim(axis, 1)[:, [0, -1]].flatten(1) for axis in (1, 2, 3)], 1)


@pytest.mark.parametrize(
    ("bundle", "files"),
    [
        ("simtrot", ["train.json", SAMPLE]),
        ("simtrot", ["pretrain.json", SAMPLE]),
        ("pretrain_once", ["train.json", SAMPLE]),
        ("pretrain_once", ["pretrain.json", SAMPLE]),
        ("medical_transformer", ["train.json", "tasks/structures4.json", SAMPLE]),
        ("medical_transformer", ["train.json", TUMOUR, SAMPLE]),
        ("medical_transformer", ["pretrain.json", SAMPLE]),
        ("ssl3d", ["train.json", SAMPLE]),
        ("ssl3d", ["pretrain.json", SAMPLE, "pretexts/mae.json"]),
        ("ssl3d", ["pretrain.json", SAMPLE, "pretexts/exemplar.json"]),
    ],
)
def test_padding_is_the_background_and_of_no_class(cohort, bundle, files):
    parser = parsed(bundle, *files, **LARGE, dataset_dir=str(cohort))
    where = "deterministic_transforms"
    if where not in parser.get():
        where = f"train#{where}"
    item = first_item(cohort, files)
    for step in parser.get_parsed_content(where):
        item = step(item)
    image = item["image"]
    assert image.shape == (4 if TUMOUR in files else 1, 80, 80, 80)
    assert (faces(image) == image.amin((1, 2, 3))[:, None]).all()
    if "train.json" in files:
        assert (faces(item["label"]) == -1).all() and (item["label"] > 0).any()
        assert image.min() < image[item["label"].expand_as(image) > 0].median()
    else:
        assert image.min() < image.mean()


def maps(folder: Path, **labels: np.ndarray) -> ConfigParser:
    """The pre-training of ``ssl3d`` on label maps of 4 mm, each in a file of its name; the last one is to validate."""
    for name, values in labels.items():
        nib.save(nib.Nifti1Image(values.astype(np.uint8), np.diag([4.0, 4.0, 4.0, 1.0])), folder / f"{name}.nii.gz")
    *items, last = ({"image": f"{name}.nii.gz"} for name in labels)
    (folder / "maps.json").write_text(json.dumps({"training": items, "validation": [last]}))
    sizes = {"spacing": [4.0] * 3, "map_size": [40, 48, 40], "roi_size": [32] * 3, "image_size": [32] * 3}
    given = {"dataset_dir": str(folder), "pretrain_datalist": str(folder / "maps.json"), "cache": "none"}
    return parsed("ssl3d", "pretrain.json", "presets/cpu.json", **sizes, **given)


def test_a_label_map_is_padded_with_background(tmp_path):
    """Its labels 2 and 3 fill their box. It was padded with 2, a structure; a map of one structure was refused."""
    box = np.zeros((40, 48, 40))
    box[10:30, 10:30, 10:30] = 2
    two = box.copy()
    two[20:30, 10:30, 10:30] = 3
    parser = maps(tmp_path, box=box, two=two, last=two)
    halves = {2: 4000, 3: 4000}
    for part, number, values in (("train", 0, {2: 8000}), ("train", 1, halves), ("validate", 0, halves)):
        made = parser.get_parsed_content(f"{part}#dataset")[number]["image"]
        assert made.shape == (1, 40, 48, 40)
        found = {int(value): int((made == value).sum()) for value in made.unique()}
        assert found == {0: made.numel() - 8000, **values}


def test_a_label_map_of_one_label_is_refused_by_name(tmp_path):
    parser = maps(tmp_path, full=np.full((40, 48, 40), 3), last=np.full((40, 48, 40), 2))
    with pytest.raises(Exception) as caught:
        parser.get_parsed_content("train#dataset")[0]
    assert "full.nii.gz is constant (every voxel is 3)" in str(first_cause(caught.value))


def background(bundle: str, files: list[str], value: float, shape: list[int]) -> MetaTensor:
    """A crop of background behind a bundle's augmentation, all of whose steps in space are made."""
    parser = parsed(bundle, "train.json", *files, **SHAPE)
    item = {key: MetaTensor(torch.full((1, *shape), number)) for key, number in (("image", value), ("label", 0.0))}
    for number, step in enumerate(parser["augmentation"]):
        if not any(name in step["_target_"] for name in ("Zoom", "Crop", "Affine", "Flip", "Rotate", "Shift", "Pad")):
            continue
        if "prob" in step:
            parser[f"augmentation#{number}#prob"] = 1.0
        item = parser.get_parsed_content(f"augmentation#{number}")(item)
    assert (item["label"] <= 0).all()
    return item["image"]


@pytest.mark.parametrize(
    ("bundle", "files", "value", "shape"),
    [
        ("ssl3d", [], -1.5, [16, 16, 16]),
        ("simtrot", [], 0.0, [16, 16, 16]),
        ("transseg", [], -1.0, [9, 8, 5]),
        ("simtrot", ["presets/hippocampus_cpu.json"], 0.0, [16, 16, 16]),
        ("pretrain_once", ["presets/augmentation.json"], 0.0, [16, 16, 16]),
        ("med3d", ["presets/augmentation.json"], -1.5, [16, 16, 16]),
        ("medical_transformer", ["presets/augmentation.json"], 0.0, [16, 16, 16]),
        ("medical_transformer", ["tasks/age.json", "presets/augmentation_scans.json"], 0.0, [16, 16, 16]),
    ],
)
def test_augmentation_leaves_a_crop_of_background_one_value(bundle, files, value, shape):
    """It turned corners into mean tissue, or padded with what the shift of intensities had left behind."""
    for _ in range(4):
        made = background(bundle, files, value, shape)
        assert made.max() - made.min() < 1e-4


@pytest.mark.parametrize(
    ("bundle", "files"),
    [
        ("simtrot", [SAMPLE]),
        ("pretrain_once", [SAMPLE]),
        ("medical_transformer", ["tasks/structures4.json", SAMPLE]),
        ("medical_transformer", [TUMOUR, SAMPLE]),
        ("med3d", [SAMPLE]),
        ("med3d", [SAMPLE, "presets/short.json"]),
        ("ssl3d", [SAMPLE]),
        ("transseg", []),
    ],
)
def test_padded_voxels_move_neither_loss_nor_scores(cohort, bundle, files):
    windows = bundle == "transseg"  # pads the windows that it trains on, not volumes
    sizes = {"image_size": [48, 48]} if windows else LARGE
    parser = parsed(bundle, "train.json", *files, "evaluate.json", native=False, **sizes)
    parser.update({"dataset_dir": str(cohort)})
    if TUMOUR not in files:
        parser.update({"task": "structures4", "label_scheme": "oasis_seg4", "num_classes": 5})
    item = first_item(cohort, files)
    where = "deterministic_transforms"
    for step in parser.get_parsed_content(where if where in parser.get() else f"train#{where}"):
        item = step(item)
    if windows:
        parser["augmentation#0#max_zoom"] = 0.8
        for step in parser.get_parsed_content("augmentation"):
            item = step(item)
    label = item["label"].as_tensor()[None].float()
    loss, classes = parser.get_parsed_content("loss"), parser.get_parsed_content("num_classes")
    logits, changed = [], []
    for scale in (1, 2, 4) if "DeepSupervision" in type(loss).__name__ else (1,):
        one = F.interpolate(label, [side // scale for side in label.shape[2:]], mode="nearest-exact")
        padding = one == -1
        assert padding.any() and (one > 0).any()
        logits.append(torch.randn(1, classes, *one.shape[2:], requires_grad=True))
        changed.append(torch.where(padding, 9 * torch.randn(1, classes, *one.shape[2:]), logits[-1].detach()))
    value = loss(logits if len(logits) > 1 else logits[0], label)
    torch.testing.assert_close(loss(changed if len(changed) > 1 else changed[0], label), value)
    value.backward()
    for one in logits:
        padding = F.interpolate(label, one.shape[2:], mode="nearest-exact")[:, 0] == -1
        assert not one.grad.movedim(1, -1)[padding].any() and one.grad.any()
    if windows:
        return
    found = []
    for prediction in (logits[0].detach()[0], changed[0][0]):
        scored = parser.get_parsed_content("validate#postprocessing")({**item, "pred": prediction})
        metrics = [ClassDice(), ClassDice(include_background=True), HD95(definition="larger")]
        found.append([metric([scored["pred"]], [scored["label"]]) for metric in metrics])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
