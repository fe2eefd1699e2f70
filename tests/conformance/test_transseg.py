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


# Table 6, "Details of the experimental settings". GPUs and hours are not of the configs.
BATCH_SIZE, PATCH_SIZE = 16, (16, 16, 5)
LEARNING_RATE, WEIGHT_DECAY = 3e-5, 5e-2
STEPS, WARMUP_STEPS = 25_000, 20
ZOOM, FLIP, ROTATION, SHIFT, SHIFTED = (0.5, 2), 0.1, 0.1, (-0.1, 0.1), 0.5
CT, MADE = (-175, 250), (-1, 1)


def test_hyperparameters_of_table_6():
    """Batch, patch, loss, optimiser, rate, decay, schedule, steps, and no ensemble.

    The published code also clips gradients at 1 and lets biases escape decay; the paper does not say so.
    """
    parser = configs()
    assert parser["batch_size"] == BATCH_SIZE and parser["train#dataloader#batch_size"] == "@batch_size"
    assert parser["train#trainer#accumulation_steps"] == 1
    shared = read("multi_gpu_train.json")["train#dataloader#batch_size"]
    assert shared == {"_target_": "common.distributed.share_of_batch", "batch_size": "@batch_size"}  # of all GPUs
    assert net().encoder.patch_embedding.weight.shape[2:] == PATCH_SIZE and parser["slices"] == PATCH_SIZE[2]
    assert parser["max_epochs"] * parser["batches_per_epoch"] == STEPS

    loss = parser.get_parsed_content("loss")
    truth = torch.randint(0, 3, (2, 1, 8, 8, 1))
    logits = torch.nn.functional.one_hot(truth[:, 0], 3).movedim(-1, 1) * 20.0
    assert type(loss).__name__ == "SoftmaxDiceFocalLoss" and loss(logits, truth) < 1e-3 < 1 < loss(-logits, truth)

    parser["network"] = torch.nn.Linear(2, 1)
    optimizer, schedule = (parser.get_parsed_content(name) for name in ("optimizer", "lr_scheduler"))
    weights, biases = optimizer.param_groups
    assert type(optimizer) is torch.optim.AdamW
    assert (weights["weight_decay"], biases["weight_decay"]) == (WEIGHT_DECAY, 0)
    assert schedule.base_lrs == [LEARNING_RATE] * 2
    schedule.begin(STEPS)
    middle = (WARMUP_STEPS + STEPS) / 2
    rates = [schedule.factor(step) for step in (0, WARMUP_STEPS / 2, WARMUP_STEPS, middle, STEPS)]
    assert rates == pytest.approx([0, 0.5, 1, 0.5, 0])  # a slanted triangle

    (clipping,) = [x for x in parser["train#handlers"] if x["_target_"].endswith("GradientClipping")]
    assert clipping["max_norm"] == 1.0
    for inferer in (parser["validate#inferer"], read("inference.json")["inferer"]):
        assert inferer["_target_"] == "common.inferers.SliceWindowInferer"  # one net, one view, one scale


@pytest.mark.parametrize("name", ["compare_bcv.json", "compare_acdc.json"])
def test_rates_are_not_tuned_in_table_2(name):
    """ "Hyperparam Tuning: No". Comparisons of small nets, which are not the paper's, do tune."""
    settings = json.loads((CONFIGS.parent / name).read_text())
    assert "tune" not in settings and settings["steps"] == STEPS
    assert "tune" in json.loads((CONFIGS.parent / "compare_hippocampus.json").read_text())


def test_augmentation_of_table_6():
    """The paper pads last; here padding comes before the shift, as the bundle's page says.

    Intensities are scaled before all of it, once for each volume.
    """
    parser = configs()
    parser["image_size"] = [16, 16]
    zoom, crop, *flips, turn, pad, pad_label, shift = parser.get_parsed_content("augmentation")
    steps = [zoom, crop, *flips, turn, pad, pad_label, shift]
    names = ["RandZoomd", "RandSpatialCropd", *["RandFlipd"] * 3, "RandRotate90d", *["SpatialPadd"] * 2]
    assert [type(step).__name__ for step in steps] == [*names, "RandShiftIntensityd"]
    assert (*zoom.rand_zoom.min_zoom, *zoom.rand_zoom.max_zoom) == ZOOM and zoom.prob == 1
    assert {flip.prob for flip in flips} == {FLIP} and turn.prob == ROTATION
    assert [flip.flipper.spatial_axis for flip in flips] == [0, 1, 2]
    assert (shift.shifter.offsets, shift.prob) == (SHIFT, SHIFTED)
    page = (CONFIGS.parent / "docs/README.md").read_text()
    assert "padding is the lowest intensity" in page and "comes before the shift" in page


@pytest.mark.parametrize("name", SETS)
def test_intensities_of_table_6(name):
    """CT as in the paper. MRI by percentiles instead of from 0 to the maximum, as the bundle's page says.

    Inference is as training.
    """
    parsers = []
    for base in ("train.json", "inference.json"):
        parser = ConfigParser()
        parser.read_config([str(CONFIGS / file) for file in (base, f"datasets/{name}.json")])
        parsers.append(parser)
    steps = [parser.get_parsed_content("intensity") for parser in parsers]
    image = torch.linspace(-300, 400, 701)[None, :, None, None]
    for step in steps:
        made = step({"image": image.clone()})["image"]
        assert (float(made.min()), float(made.max())) == MADE
        if name not in MRI:
            assert float(made[0, 300 + CT[0], 0, 0]) == MADE[0] < float(made[0, 301 + CT[0], 0, 0])
            assert float(made[0, 299 + CT[1], 0, 0]) < MADE[1] == float(made[0, 300 + CT[1], 0, 0])
    kinds = {type(step).__name__ for step in steps}
    assert kinds == {"ScaleForegroundPercentilesd" if name in MRI else "ScaleIntensityRanged"}
    page = (CONFIGS.parent / "docs/README.md").read_text()
    assert "| MRI | [0, MAX] |" in page and "percentiles 0.5 to 99.5 of the foreground" in page


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
