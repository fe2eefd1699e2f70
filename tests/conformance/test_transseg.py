"""What the paper of `transseg` and its published code pin down, read from the bundle's configs (Zhang et al., ML4H
2022).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from torch.utils.flop_counter import FlopCounterMode

from common.transforms import noise_mask

CONFIGS = Path(__file__).resolve().parents[2] / "bundles" / "transseg" / "configs"


def read(name: str) -> dict:
    return json.loads((CONFIGS / name).read_text())


def net(*names: str, slices: int = 5) -> torch.nn.Module:
    """The segmentation net of the configs, without memory."""
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / name) for name in ("train.json", *names)])
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


def test_settings():
    """Table 6."""
    train = read("train.json")
    assert (train["learning_rate"], train["weight_decay"], train["warmup_steps"]) == (3e-5, 0.05, 20)
    assert train["max_epochs"] * train["batches_per_epoch"] == 25_000 and train["batch_size"] == 16
    assert (train["slices"], train["slice_stride"], train["target"], train["inflation"]) == (5, 1, "centre", "centring")
    assert (train["image_size"], train["intensity_range"]) == ([512, 512], [-1.0, 1.0])
    assert (train["intensity"]["a_min"], train["intensity"]["a_max"]) == (-175, 250)
    steps = [step["_target_"] for step in train["augmentation"]]
    assert steps[:2] == ["RandZoomd", "RandSpatialCropd"] and steps[2:5] == ["RandFlipd"] * 3
    assert steps[5:] == ["RandRotate90d", "RandShiftIntensityd", "SpatialPadd", "SpatialPadd"]
    zoom, shift = train["augmentation"][0], train["augmentation"][6]
    assert (zoom["min_zoom"], zoom["max_zoom"], zoom["prob"], zoom["keep_size"]) == (0.5, 2.0, 1.0, False)
    assert (shift["offsets"], shift["prob"]) == (0.1, 0.5)
    assert (
        train["validate"]["postprocessing"]["transforms"][0]["to_onehot"] == "@num_classes"
        and train["num_classes"] == 14
    )
    # Spleen, kidneys, gallbladder, liver, stomach, aorta, pancreas: 8 of the 13 that are trained.
    assert read("evaluate.json")["scored_classes"] == [1, 2, 3, 4, 6, 7, 8, 11]


@pytest.mark.parametrize(
    ("name", "size", "classes", "channels", "steps"),
    [
        ("bcv", 512, 13, 1, 25_000), ("acdc", 512, 3, 1, 25_000), ("brain", 240, 3, 4, 250_000),
        ("heart", 320, 1, 1, 25_000), ("liver", 512, 2, 1, 25_000), ("hippocampus", 240, 2, 1, 25_000),
        ("prostate", 320, 2, 2, 25_000), ("lung", 512, 1, 1, 25_000), ("pancreas", 512, 2, 1, 250_000),
        ("vessel", 512, 2, 1, 250_000), ("spleen", 512, 1, 1, 25_000), ("colon", 512, 1, 1, 25_000),
    ],
)  # fmt: skip
def test_datasets(name, size, classes, channels, steps):
    """Tables 1 and 6."""
    config = read("train.json") | read(f"datasets/{name}.json")
    assert config["image_size"] == [size, size] and config["num_classes"] == classes + 1
    assert config["in_channels"] == channels and config["max_epochs"] * config["batches_per_epoch"] == steps
    is_mri = name in ("acdc", "brain", "heart", "hippocampus", "prostate")
    assert ("window" not in config["intensity_rule"]) == is_mri


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONFIGS / "datasets").glob("*.json")))
def test_slices_of_every_set_can_be_masked_for_pretraining(name):
    """Also 240 x 240, which cells of 32 do not divide. A patch is hidden or seen, not in part."""
    config = read("pretrain.json") | read(f"datasets/{name}.json")
    patch = config["segmentation_net"]["encoder"].get("patch_size", 16)
    _, mask = noise_mask(torch.zeros(2, 1, *config["image_size"], 1), config["mask_ratio"], config["mask_size"])
    assert mask.float().mean() == pytest.approx(0.6, abs=0.05)
    patches = mask[..., 0].unfold(1, patch, patch).unfold(2, patch, patch).flatten(3)
    assert torch.equal(patches.all(-1), patches.any(-1))


def test_rows_of_the_ablations():
    """Table 4."""
    presets = {path.stem: read(f"presets/{path.name}") for path in (CONFIGS / "presets").glob("*.json")}
    assert presets["average_inflation"] == {"inflation": "average"}
    assert presets["predict_all"] == {"target": "all"}
    assert [presets[f"stride_{n}"]["slice_stride"] for n in (2, 3)] == [2, 3]
    assert [presets[f"slices_{n}"]["slices"] for n in (1, 11, 21)] == [1, 11, 21]
    # The published net of single slices is trained on the middle of windows of 5 that are zoomed and flipped.
    assert presets["slices_1"]["cut_slices"] == 5
