"""What the paper of `medical_transformer` pins down, read from the bundle's configs (Jun et al., sections 3 and 4)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from common.networks import GenesisUNet
from common.networks.planes import PLANES, to_slices

CONFIGS = Path(__file__).resolve().parents[2] / "bundles" / "medical_transformer" / "configs"


def parsed(*names: str) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / name) for name in names])
    return parser


@pytest.mark.parametrize(
    ("files", "classes", "count"),
    [
        (["tasks/diagnosis.json"], 3, 2_402_163),  # table 3: 2.402 M
        (["tasks/age.json"], 1, 2_401_777),  # 2.401 M
        (["tasks/tumour.json"], 3, 2_410_227),  # 2.410 M, with three classes and with four
        ([], 4, 2_410_756),
        (["tasks/diagnosis.json", "presets/paper_dims.json"], 3, 2_171_619),  # of the sizes in section 4.1.1
    ],
)
def test_parameters(files, classes, count):
    parser = parsed("train.json", *files)
    parser["num_classes"] = classes
    with torch.device("meta"):
        net = parser.get_parsed_content("segmentation_net")
    assert sum(parameter.numel() for parameter in net.parameters()) == count


@pytest.mark.parametrize(
    ("files", "count", "published"),
    [
        (["tasks/diagnosis.json", "comparators/i3d_diagnosis.json"], 12_374_947, None),  # table 3 has 12.378 M
        (["tasks/age.json", "comparators/i3d_age.json"], 12_374_689, "12.375"),
        (["tasks/diagnosis.json", "comparators/medicalnet_diagnosis.json"], 33_052_227, "33.052"),
        (["tasks/age.json", "comparators/medicalnet_age.json"], 33_051_969, "33.051"),
    ],
)
def test_parameters_of_the_comparators(files, count, published):
    """Table 3, whose last digits are partly rounded and partly cut off: the encoder, a hidden layer of 128, the output.

    Of I3D the table has 0.003 M more for three classes than for one number. Two more outputs of a hidden layer have
    258 parameters, as the other nets' counts say.
    """
    with torch.device("meta"):
        net = parsed("train.json", *files).get_parsed_content("segmentation_net")
    made = sum(parameter.numel() for parameter in net.parameters())
    assert made == count
    if published:
        assert published in (f"{made / 1e6:.3f}", f"{made // 1000 / 1000:.3f}")


def test_parameters_of_models_genesis():
    """Table 3: its encoder with such a head has 7.093 M for both, its U-Net with four contrasts 19.076 M."""
    configs = CONFIGS.parents[1] / "ssl3d" / "configs"
    for task, outputs in (("diagnosis", 3), ("age", 1)):
        parser = ConfigParser()
        parser.read_config([str(configs / f) for f in ("train.json", f"tasks/{task}.json", "networks/genesis.json")])
        parser["task_net#hidden"], parser["pooled"] = 128, "last"
        with torch.device("meta"):
            net = parser.get_parsed_content("task_net")
        # The way up stays in place, unused, so that published weights fit.
        made = sum(parameter.numel() for name, parameter in net.named_parameters() if ".up_tr" not in name)
        assert made == 7_027_776 + 512 * 128 + 128 + 128 * outputs + outputs and made // 1000 == 7093
    with torch.device("meta"):
        net = GenesisUNet(4, 3)
    assert sum(parameter.numel() for parameter in net.parameters()) // 1000 == 19_076


def test_backbone():
    with torch.device("meta"):
        encoder = parsed("pretrain.json").get_parsed_content("encoder")
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in encoder.planes.items()}
    assert counts == dict.fromkeys(PLANES, 706_384)
    assert sum(p.numel() for p in encoder.transformer.parameters()) == 282_432
    assert sum(p.numel() for p in encoder.parameters()) == 2_401_584


def test_slices_and_masks():
    parser = parsed("pretrain.json", "pretrain_transformer.json")
    size = parser.get_parsed_content("roi_size")
    image = torch.empty(1, 1, *size, device="meta")
    found = {plane: tuple(to_slices(image, plane).shape[2:]) for plane in PLANES}
    assert found == {"sagittal": (96, 96, 114), "coronal": (114, 96, 96), "axial": (96, 96, 114)}
    with torch.device("meta"):
        pretext = parser.get_parsed_content("pretext")
    assert pretext.masked == [9, 11, 9]


def test_maps_of_a_slice():
    """Figure 3 and the published code: 24 x 29, 12 x 15, 6 x 8, 3 x 4 of an axial slice."""
    with torch.device("meta"):
        encoder = parsed("pretrain.json").get_parsed_content("encoder").planes["axial"]
        vectors, maps = encoder(torch.empty(1, 1, 96, 96, 114))
    assert tuple(vectors.shape) == (1, 96, 64)
    assert [tuple(map.shape[1:]) for map in maps] == [
        (16, 96, 24, 29),
        (32, 96, 12, 15),
        (64, 96, 6, 8),
        (128, 96, 3, 4),
    ]


@pytest.mark.parametrize("name", ["pretrain.json", "train.json"])
def test_recipe(name):
    """Section 4.1.1: Adam, 1e-4, times 0.99 an epoch, 150 epochs, patience 30, batches of 10."""
    parser = parsed(name)
    found = {key: parser[key] for key in ("learning_rate", "max_epochs", "patience", "batch_size", "val_interval")}
    assert found == {
        "learning_rate": 1e-4, "max_epochs": 150, "patience": 30, "batch_size": 10, "val_interval": 1,
    }  # fmt: skip
    assert parser["optimizer"]["_target_"] == "torch.optim.Adam"
    assert (parser["lr_scheduler"]["gamma"], parser["lr_scheduler"]["periods"]) == (0.99, 150)


def test_the_papers_volumes():
    """193 x 229 x 193 mm of one millimetre, pooled by two; BraTS cut to 160 x 192 x 128 of four contrasts."""
    pre, tumour = parsed("pretrain.json"), parsed("train.json", "datasets/brats.json")
    assert pre.get_parsed_content("fine_spacing") == [1.0, 1.0, 1.0] and pre["pooling"] == 2
    assert [n // pre["pooling"] for n in (193, 229, 193)] == pre["roi_size"]
    assert (tumour["roi_size"], tumour["in_channels"]) == ([160, 192, 128], 4)
    assert (tumour["fold"], tumour["pool_test"]) == (0, True)  # five folds: three, one and one
