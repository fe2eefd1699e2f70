"""What bundles make of intensities: of a head in air and a CT, in every data set that a bundle has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

ROOT = Path(__file__).resolve().parents[2] / "bundles"
CASES = [
    (path.parents[2].name, base, path.stem)
    for path in sorted(ROOT.glob("*/configs/datasets/*.json"))
    for base in ("train.json", "inference.json")
    if base == "train.json" or "+pretrain_datalist" not in path.read_text()  # one more domain of pre-training alone
]
SCALING = ("ForegroundPercentiles", "NormalizeForeground", "ScaleIntensity", "NormalizeIntensity")


def parsed(bundle: str, *names: str) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(ROOT / bundle / "configs" / name) for name in names])
    return parser


def scaled(bundle: str, image: torch.Tensor, *names: str) -> torch.Tensor:
    """An image as the configs scale it."""
    parser = parsed(bundle, *names)
    if "intensity" in parser.get():
        return parser.get_parsed_content("intensity")({"image": image})["image"]
    where = "preprocessing#transforms" if "preprocessing" in parser.get() else "train#deterministic_transforms"
    targets = [part["_target_"] if isinstance(part, dict) else "" for part in parser[where]]
    (step,) = [i for i, target in enumerate(targets) if any(name in target for name in SCALING)]
    return parser.get_parsed_content(f"{where}#{step}")({"image": image})["image"]


def scan(air: float = 0.0, voxels: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """A ball of tissues of 50 to 850 in air, (1, x, y, z), and where it is tissue."""
    radius = np.sqrt((np.stack(np.meshgrid(*[np.linspace(-1, 1, 24)] * 3)) ** 2).sum(0))
    tissue = 50 + 800 * np.random.default_rng(0).random(radius.shape)
    image = torch.tensor(np.where(radius < 0.8, tissue, air), dtype=torch.float32)[None]
    return torch.nn.functional.pad(image, [voxels] * 6, value=air), torch.nn.functional.pad(
        torch.tensor(radius < 0.8)[None], [voxels] * 6
    )


@pytest.mark.parametrize(("bundle", "base", "dataset"), CASES)
@pytest.mark.parametrize("air", [0.0, -1024.0], ids=["mr", "ct"])
def test_more_air_leaves_tissue_as_it_is(bundle, base, dataset, air):
    if air != (-1024 if dataset == "lits" else 0) and dataset in ("lits", "brats"):
        pytest.skip("of the other modality")
    found = []
    for voxels in (2, 12):
        image, inside = scan(air, voxels)
        found.append(scaled(bundle, image, base, f"datasets/{dataset}.json")[inside])
    torch.testing.assert_close(*found)
    assert found[0].std() > 0


@pytest.mark.parametrize(
    ("bundle", "base", "preset"),
    [
        ("pretrain_once", "pretrain.json", "official_code"),
        ("pretrain_once", "pretrain.json", "official_code_rcr"),
        ("pretrain_once", "train.json", "official_code_train"),
        ("med3d", "train.json", "whole_volume"),
        ("med3d", "inference.json", "whole_volume"),
    ],
)
def test_rules_of_the_whole_volume_are_kept_by_name(bundle, base, preset):
    made = []
    for voxels in (2, 6):
        image, inside = scan(voxels=voxels)
        made.append(scaled(bundle, image, base, f"presets/{preset}.json")[inside])
    low, high = np.percentile(image, [5, 95] if bundle == "pretrain_once" else [0.5, 99.5])
    clipped = image.clamp(low, high)
    whole = (clipped - low) / (high - low)
    if bundle == "med3d":
        whole = (clipped - clipped.mean()) / clipped.std(correction=0)
    torch.testing.assert_close(made[1], whole[inside], atol=1e-4, rtol=1e-4)
    assert (made[0] - made[1]).abs().max() > 0.1
