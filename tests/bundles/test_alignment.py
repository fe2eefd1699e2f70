"""Steps that resize: an image stays on its label, to a fraction of a voxel.

``nearest`` of torch takes the voxel below a sampling point, half a voxel beside where every other mode takes it.
"""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from common.overlays import merge_files
from common.transforms import StoredGridd

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
RESIZING = ("RandSimulateLowResolutiond", "RandZoomd", "Resized", "Zoomd")


def resizing(at, path=""):
    """Each step of a config that resizes by torch's interpolation, with its place."""
    if isinstance(at, dict):
        if at.get("_target_") in RESIZING:
            yield path, at
        for name, value in at.items():
            yield from resizing(value, f"{path}#{name}")
    elif isinstance(at, list):
        for number, value in enumerate(at):
            yield from resizing(value, f"{path}#{number}")


STEPS = {
    f"{file.relative_to(BUNDLES)}{place}": step
    for file in sorted(BUNDLES.glob("*/configs/**/*.json"))
    for place, step in resizing(json.loads(file.read_text()))
}
PAIRED = {place: step for place, step in STEPS.items() if isinstance(step.get("mode"), list)}
LOW = {place: step for place, step in STEPS.items() if step["_target_"] == "RandSimulateLowResolutiond"}


def centre(mask):
    """Centre of mass in voxels from the middle of the array, as shares of its size."""
    sizes = mask.shape[1:]
    grids = torch.meshgrid(*[(torch.arange(n) + 0.5) / n - 0.5 for n in sizes], indexing="ij")
    return torch.stack([(mask[0] * grid).sum() / mask[0].sum() for grid in grids])


def ellipsoid(size):
    grids = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in size], indexing="ij")
    return (sum((grid / 0.55) ** 2 for grid in grids) < 1).float()[None]


def test_there_are_such_steps():
    assert len(LOW) == 4 and len(PAIRED) == 3


def test_no_step_takes_the_voxel_below():
    modes = {place: step.get("mode") for place, step in STEPS.items()}
    assert not [
        place for place, mode in modes.items() if mode == "nearest" or (isinstance(mode, list) and "nearest" in mode)
    ]


@pytest.mark.parametrize("place", LOW)
def test_a_lower_resolution_does_not_move_the_image(place):
    step = ConfigParser({"step": LOW[place] | {"prob": 1.0}}).get_parsed_content("step")
    step.set_random_state(0)
    image = ellipsoid((40, 40, 16))
    moved = torch.stack([centre(step({"image": image})["image"]) - centre(image) for _ in range(60)])
    voxels = moved.mean(0) * torch.tensor([40, 40, 16])
    assert voxels.abs().max() < 0.2, voxels


@pytest.mark.parametrize("place", PAIRED)
def test_a_label_is_resized_onto_its_image(place):
    step = {**PAIRED[place], "prob": 1.0} if "prob" in PAIRED[place] else PAIRED[place]
    size = {"spatial_size": [40, 40, 9]} if "spatial_size" in step else {}  # not halves, between which nearest is a tie
    made = ConfigParser({"step": step | size}).get_parsed_content("step")
    if hasattr(made, "set_random_state"):
        made.set_random_state(0)
    whole = ellipsoid((96, 96, 24))
    apart = []
    for _ in range(40 if "prob" in step else 1):
        done = made({"image": whole, "label": whole})
        sizes = torch.tensor(done["label"].shape[1:])
        apart.append((centre(done["label"]) - centre(done["image"])) * sizes)
    assert torch.stack(apart).mean(0).abs().max() < 0.2, apart


@pytest.mark.parametrize("size", [[28, 100, 100], [12, 64, 64]])
def test_masks_of_the_medicalnet_demo_lie_on_their_scan(tmp_path, size):
    """A net without a fault, back on the scan's grid: its mask is where the truth is, resized both ways."""
    shape, affine = (120, 120, 30), np.diag([0.5, 0.5, 3, 1])
    grid = np.indices(shape).transpose(1, 2, 3, 0)
    label = ((((grid - [60, 60, 15]) / [20, 16, 6]) ** 2).sum(-1) < 1).astype(np.uint8)
    image = 50 + 150 * label + np.random.default_rng(0).normal(0, 2, shape)
    nib.save(nib.Nifti1Image(image.astype(np.float32), affine), tmp_path / "image.nii.gz")
    nib.save(nib.Nifti1Image(label, affine), tmp_path / "label.nii.gz")
    configs = BUNDLES / "med3d" / "configs"
    files = [configs / name for name in ("train.json", "evaluate.json", "presets/medicalnet_demo.json")]
    parser = ConfigParser(merge_files(files))
    for key, value in {
        "label_map": {"0": [], "1": [1]},
        "num_classes": 2,
        "image_size": size,
        "roi_size": size,
    }.items():
        parser[key] = value
    parser["bundle_root"] = str(configs.parent)
    transform = parser.get_parsed_content("validate#preprocessing")
    item = transform({"image": str(tmp_path / "image.nii.gz"), "label": str(tmp_path / "label.nii.gz")})
    logits = torch.nn.functional.one_hot(item["label"].as_tensor()[0].long(), 2).movedim(-1, 0).float()
    back = StoredGridd("pred", transform)({**item, "pred": logits})
    masks = {key: torch.as_tensor(np.asarray(back[key])) for key in ("pred", "label")}
    made, truth = masks["pred"].argmax(0).bool(), masks["label"][0].bool()
    shift = made.nonzero().float().mean(0) - truth.nonzero().float().mean(0)
    assert truth.shape == shape and shift.abs().max() < 0.4, shift


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "SAR", "PIR"])
@pytest.mark.parametrize(
    ("bundle", "files"),
    [
        ("ssl3d", ("train.json", "tasks/age.json")),
        ("ssl3d", ("train.json", "tasks/diagnosis.json")),
        ("medical_transformer", ("train.json", "tasks/age.json", "presets/augmentation_scans.json")),
        ("medical_transformer", ("train.json", "tasks/structures4.json", "presets/augmentation.json")),
    ],
)
def test_images_are_mirrored_from_left_to_right_in_any_orientation(bundle, files, orientation):
    parser = ConfigParser(merge_files([BUNDLES / bundle / "configs" / name for name in files]))
    parser["orientation"] = orientation
    flip = parser.get_parsed_content("augmentation#0")
    assert orientation[flip.flipper.spatial_axis] in "LR"


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "SAR", "PIR"])
def test_generated_heads_are_mirrored_from_left_to_right_in_any_orientation(orientation):
    """Mirrored and with its labels swapped, a head's left white matter (2) is on its left, and the feet are below."""
    parser = ConfigParser(merge_files([BUNDLES / "ssl3d" / "configs" / "pretrain.json"]))
    parser.update({"orientation": orientation, "task": "structures33", "spacing": [2.0, 2.0, 2.0]})
    deformation = parser.get_parsed_content("deformation")
    deformation.scaling = deformation.rotation = deformation.shearing = deformation.velocity = 0
    deformation.size = None
    head = torch.zeros(3, 4, 5, dtype=torch.uint8)  # R, A, S
    head[0], head[2], head[1, :, 0] = 2, 41, 16
    codes = "RAS"
    stored = nib.orientations.axcodes2ornt(tuple(orientation))
    turned = nib.orientations.apply_orientation(
        head.numpy(), nib.orientations.ornt_transform(nib.orientations.axcodes2ornt(tuple(codes)), stored)
    )
    labels = torch.from_numpy(np.ascontiguousarray(turned))[None, None]
    torch.manual_seed(0)
    made = deformation(labels.repeat(20, 1, 1, 1, 1))
    assert all(torch.equal(one, labels[0]) for one in made)  # this head is symmetrical
