"""Steps that resize: an image stays on its label, to a fraction of a voxel.

``nearest`` of torch takes the voxel below a sampling point, half a voxel beside where every other mode takes it.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

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
    assert len(LOW) == 2 and len(PAIRED) == 3


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
