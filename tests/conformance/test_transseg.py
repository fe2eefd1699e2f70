"""What the paper of `transseg` and its published code pin down, read from the bundle's configs (Zhang et al., ML4H
2022).
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from torch.utils.flop_counter import FlopCounterMode

from common.data import label_names
from common.data.prepare.split import split_by_subject
from common.preparation import preparation_record
from common.transforms import noise_mask

CONFIGS = Path(__file__).resolve().parents[2] / "bundles" / "transseg" / "configs"


def read(name: str) -> dict:
    return json.loads((CONFIGS / name).read_text())


def configs(*names: str) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / name) for name in ("train.json", *names)])
    return parser


@functools.cache
def net(*names: str, slices: int = 5) -> torch.nn.Module:
    """The segmentation net of the configs, without memory."""
    parser = configs(*names)
    parser["slices"] = slices
    with torch.device("meta"):
        return parser.get_parsed_content("segmentation_net").eval()


def operations(module, image: torch.Tensor) -> int:
    """Additions and multiplications of the matrix products and convolutions of a forward pass."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(image)
    return counter.get_total_flops()


def millions(module: torch.nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


@pytest.mark.parametrize(("slices", "expected"), [(1, 213_343_401_984), (5, 214_954_014_720)])
def test_operations_of_the_encoder(slices, expected):
    """The numbers of the published README ("213.3 GFLOPS before adaptation vs. 215.0 after", section 4.2), to the unit.

    Theirs count 5 for each element of a layer norm beside products and convolutions.
    """
    encoder = net(slices=slices).encoder
    image = torch.empty(1, 1, 512, 512, slices, device="meta")
    norms = sum(isinstance(module, torch.nn.LayerNorm) for module in encoder.modules())
    assert operations(encoder, image) + 5 * norms * (1 + 32 * 32) * 768 == expected


def test_operations_of_the_whole_net():
    """Four slices more cost 1,610,612,736 operations: 0.75 % of the encoder, but 0.134 % of the net."""
    single, whole = (operations(net(slices=k), torch.empty(1, 1, 512, 512, k, device="meta")) for k in (1, 5))
    assert whole - single == 2 * 4 * 256 * 768 * 1024 == 1_610_612_736
    assert (whole - single) / 213_343_401_984 == pytest.approx(0.0075, abs=5e-5)
    assert (whole - single) / single == pytest.approx(0.00134, abs=5e-6)
    encoder = operations(net(slices=1).encoder, torch.empty(1, 1, 512, 512, 1, device="meta"))
    assert (single - encoder) / single == pytest.approx(0.82, abs=0.005)


def test_parameters():
    model = net()
    assert millions(net(slices=1).encoder) == pytest.approx(85.83, abs=0.005)
    assert millions(model.encoder) == pytest.approx(85.83 + 0.786, abs=0.005)
    assert millions(model.neck) == pytest.approx(7.08, abs=0.005)
    assert millions(model.decoder) == pytest.approx(67.86, abs=0.005)
    table = model.encoder.position_biases[0].relative_position_bias_table
    assert table.shape == (3972, 12)


@pytest.mark.parametrize("name", ["dino", "swin", "videoswin"])
def test_encoders_are_of_one_size(name):
    """ "All the base models with around 85M parameters" (section 3.2)."""
    assert millions(net(f"networks/{name}.json").encoder) == pytest.approx(87, abs=2)


def test_maps_that_the_decoder_takes():
    model = net()
    assert model.encoder.out_blocks == (4, 6, 8, 12)  # the published 3, 5, 7, 11, which count from 0
    image = torch.empty(1, 1, 512, 512, 5, device="meta")
    assert [tuple(x.shape[2:]) for x in model.neck(model.encoder.slice_maps(image))] == [
        (128, 128),
        (64, 64),
        (32, 32),
        (16, 16),
    ]
    swin = net("networks/swin.json")
    assert swin.encoder.channels == (128, 256, 512, 1024) and swin.decoder.channels == 512
    assert isinstance(swin.neck, torch.nn.Identity)


def test_windows_are_augmented_as_published():
    """Zoom of all three axes, crop, flips, quarter turns, padding with the lowest intensity, shift.

    The published code shifts before it pads, so that padding is up to 0.1 off the background.
    """
    parser = configs()
    parser["image_size"] = [16, 16]
    transform = parser.get_parsed_content("train#window_transforms").set_random_state(0)
    filled = []
    for _ in range(40):
        item = transform({"image": torch.zeros(1, 16, 16, 5), "label": torch.ones(1, 16, 16, 5)})
        assert item["image"].shape == item["label"].shape == (1, 16, 16, 5)
        inside = item["label"] == 1
        shift = item["image"][inside].unique()
        assert len(shift) == 1 and abs(shift) <= 0.1
        torch.testing.assert_close(item["image"][~inside], (shift - 1).expand(int((~inside).sum())))
        filled.append([int(inside.any(0).any(1).any(0).sum()), int(inside.any(0).any(1).any(1).sum())])
    slices, rows = zip(*filled, strict=True)
    assert set(slices) == {2, 3, 4, 5} and min(rows) < 10 and sum(side == 16 for side in rows) > 10


def test_scored_classes_are_the_eight_organs():
    names = {task: label_names(task) for task in ("organs13", "organs8")}
    scored = [names["organs13"][number] for number in read("evaluate.json")["scored_classes"]]
    assert sorted(scored) == sorted(name for number, name in names["organs8"].items() if number)


# Label classes, split, and clip range (Table 1; of MRI, where it says N/A, of the published scripts).
SETS = {
    "bcv": (13, (18, 12, 0), (-175, 250)), "acdc": (3, (70, 10, 20), (-175, 250)),
    "brain": (3, (387, 72, 25), (-1e6, 1e6)), "heart": (1, (16, 3, 1), (601, 1511)),
    "liver": (2, (104, 20, 7), (-175, 250)), "hippocampus": (2, (208, 39, 13), (29, 205431)),
    "prostate": (2, (25, 5, 2), (0, 2152)), "lung": (1, (50, 9, 4), (-175, 250)),
    "pancreas": (2, (224, 42, 15), (-175, 250)), "vessel": (2, (242, 45, 16), (-175, 250)),
    "spleen": (1, (32, 6, 3), (-175, 250)), "colon": (1, (100, 19, 7), (-175, 250)),
}  # fmt: skip
MRI = ("acdc", "brain", "heart", "hippocampus", "prostate")


def test_splits_that_the_documentation_asks_for():
    readme = (CONFIGS.parent / "docs/README.md").read_text()
    table = re.search(r"(?m)^\| set \|(.*)\|\n.*\n\| `--validation`, `--test` \|(.*)\|$", readme)
    asked = dict(zip(*(re.split(r" *\| *", row.strip()) for row in table.groups()), strict=True))
    asked["acdc"] = ", ".join(re.search(r"prepare acdc .* --validation (\d+) --test (\d+)", readme).groups())
    assert asked.keys() == SETS.keys() - {"bcv"}  # whose split is published
    for name, numbers in asked.items():
        split = SETS[name][1]
        subjects = [{"subject": str(number), "label": "mask"} for number in range(sum(split))]
        lists = split_by_subject(subjects, *map(int, numbers.split(", ")))
        assert tuple(len(lists[section]) for section in ("training", "validation", "test")) == split, name


@pytest.mark.parametrize("name", SETS)
def test_classes_and_intensities_of_each_set(name):
    classes, _, (low, high) = SETS[name]
    image = {"image": torch.tensor([low - 1, low, (low + high) / 2, high, high + 1.0])[None]}

    def scaled(*presets):
        parser = configs(f"datasets/{name}.json", *(f"presets/{preset}.json" for preset in presets))
        result = parser.get_parsed_content("intensity")(image)["image"][0]
        made = preparation_record(parser.get_parsed_content("validate#preprocessing"))
        assert made["value_range"] == parser.get_parsed_content("intensity_range")
        (step,) = made["intensity"]
        return parser, [round(value, 2) for value in result.tolist()], step

    parser, values, step = scaled()
    assert len(parser.get_parsed_content("label_map")) == parser.get_parsed_content("num_classes") == classes + 1
    assert (min(values), max(values)) == (-1, 1) and ("lower" in step) == (name in MRI) and step["clip"]
    steps = parser["max_epochs"] * parser["batches_per_epoch"]
    assert steps == (250_000 if name in ("brain", "pancreas", "vessel") else 25_000)  # table 6
    _, values, step = scaled("official_code")
    assert (min(values), max(values)) == (0, 1) and ("lower" in step) == (name in MRI) and step["clip"]
    _, values, step = scaled("ct_window", "official_code")
    assert values == [0, 0, 0.5, 1, 1] and (step["a_min"], step["a_max"], step["clip"]) == (low, high, True)


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONFIGS / "datasets").glob("*.json")))
def test_slices_of_every_set_can_be_masked_for_pretraining(name):
    """Also 240 x 240, which cells of 32 do not divide. A patch is hidden or seen, not in part."""
    config = read("pretrain.json") | read(f"datasets/{name}.json")
    patch = config["segmentation_net"]["encoder"].get("patch_size", 16)
    _, mask = noise_mask(torch.zeros(2, 1, *config["image_size"], 1), config["mask_ratio"], config["mask_size"])
    assert mask.float().mean() == pytest.approx(0.6, abs=0.05)
    patches = mask[..., 0].unfold(1, patch, patch).unfold(2, patch, patch).flatten(3)
    assert torch.equal(patches.all(-1), patches.any(-1))


def test_nets_that_stand_in_several_files_agree():
    """The presets and the sample repeat a small network, since a config cannot take another in."""
    for repeats, network in (("presets/small", "networks/beit_small"), ("datasets/sample", "networks/beit_tiny")):
        whole, net = read(f"{repeats}.json"), read(f"{network}.json")
        assert net.items() <= whole.items(), repeats
