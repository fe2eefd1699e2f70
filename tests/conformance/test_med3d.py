"""What the paper of `med3d`, its published code and its README pin down (Chen et al., arXiv 1904.00625; MedicalNet)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from common.networks import DenseASPP, DilatedResNet

CONFIGS = Path(__file__).resolve().parents[2] / "bundles" / "med3d" / "configs"
LIVER = ("liver_coarse", "liver_fine")
# README of the published code: parameters with the norms' running statistics; depth -> shortcut, millions.
PUBLISHED = {
    10: ("B", 14.36),
    18: ("A", 32.99),
    34: ("A", 63.31),
    50: ("B", 46.21),
    101: ("B", 85.31),
    152: ("B", 117.51),
    200: ("B", 126.74),
}


@pytest.mark.parametrize("depth", PUBLISHED)
def test_backbones_have_the_published_numbers_of_parameters_and_stride_8(depth):
    shortcut, millions = PUBLISHED[depth]
    with torch.device("meta"):
        net = DilatedResNet(depth, shortcut=shortcut)
    sizes = {name: tensor.numel() for name, tensor in net.state_dict().items() if "tracked" not in name}
    assert sum(sizes.values()) / 1e6 == pytest.approx(millions, abs=0.005)
    maps = net(torch.empty(1, 1, 33, 48, 64, device="meta"))
    assert [tuple(x.shape[2:]) for x in maps[2:]] == [(5, 6, 8)] * 3
    assert net.strides[2:] == ((8, 8, 8),) * 3


@pytest.mark.parametrize(("hidden", "growth", "millions"), [(512, 128, 14.77), (128, 64, 2.52)])
def test_dense_aspp_on_2048_channels(hidden, growth, millions):
    with torch.device("meta"):
        blocks = DenseASPP([2048], 2, hidden, growth).blocks
    assert sum(parameter.numel() for parameter in blocks.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


def parsed(*names: str) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / name) for name in names])
    return parser


def read(name: str) -> dict:
    return json.loads((CONFIGS / name).read_text())


def test_networks_of_the_bundle():
    for depth, (shortcut, _) in PUBLISHED.items():
        net = read(f"networks/resnet{depth}.json")["segmentation_net"]
        assert (net["depth"], net["shortcut"], net.get("width", 64)) == (depth, shortcut, 64)
    assert read("networks/resnet200_preactivation.json")["segmentation_net"]["preactivation"]


def test_3dseg8():
    """The eight sets, by default; classes with background as the Decathlon's `dataset.json` have them."""
    parser = parsed("pretrain.json")
    names = [domain["name"] for domain in parser["domains"]]
    assert dict(zip(names, parser.get_parsed_content("branch_classes"), strict=True)) == {
        "brain": 4, "hippocampus": 3, "prostate": 3, "liver": 3, "heart": 2, "pancreas": 3, "vessel": 3, "spleen": 2,
    }  # fmt: skip
    assert read("datasets/3dseg8.json")["domains"] == read("pretrain.json")["domains"]
    with torch.device("meta"):
        net = parser.get_parsed_content("network_def")
    assert [branch.out_channels for branch in net.decoder.branches] == parser.get_parsed_content("branch_classes")
    assert {branch.kernel_size for branch in net.decoder.branches} == {(1, 1, 1)}


DATASETS = sorted(path.stem for path in (CONFIGS / "datasets").glob("*.json"))


@pytest.mark.parametrize("name", [name for name in DATASETS if "numbering" in read(f"datasets/{name}.json")])
def test_classes_of_a_data_set_are_those_of_its_label_map(name):
    parser = parsed("train.json", f"datasets/{name}.json")
    classes = parser.get_parsed_content("label_map")
    assert len(classes) == len(parser.get_parsed_content("structure_names")) == parser["num_classes"]
    assert all(classes[number] for number in range(1, len(classes)))
    assert all(size >= roi for size, roi in zip(parser["image_size"], parser["roi_size"], strict=True))


def test_settings_of_the_transfers():
    train, liver = read("train.json"), read("datasets/lits.json")
    assert train["optimizer"]["_target_"] == "torch.optim.Adam" and train["learning_rate"] == 1e-3
    clip, scale = train["intensity"]["transforms"]
    assert (clip["lower"], clip["upper"]) == (0.5, 99.5) and clip["channel_wise"] and scale["channel_wise"]
    assert read("tasks/nodule.json")["label_transforms"][0]["bounds"] == [4]
    window = liver["intensity"]["transforms"][0]
    assert (window["a_min"], window["a_max"], window["clip"]) == (-200, 250, True)
    heads = {name: read(f"tasks/{name}.json")["head"]["_target_"] for name in ("lung", "nodule", *LIVER)}
    assert [name.rpartition(".")[2] for name in heads.values()] == [
        "LungDecoder", "PooledClassifier", "BranchDecoder", "DenseASPP",
    ]  # fmt: skip
    two_stages = parsed("inference.json", "tasks/liver_fine.json", "tasks/liver_two_stage.json")
    assert two_stages["coarse_net#head"] == read("tasks/liver_coarse.json")["head"]


@pytest.mark.parametrize(
    "overlays",
    [
        ["lits", "liver_coarse"],
        ["lits", "liver_fine", "liver_two_stage"],
        ["lidc", "nodule"],
        ["brain"],
        ["hippocampus"],
    ],
    ids="+".join,
)
def test_a_data_set_with_its_task_gives_logits_of_the_crop(overlays):
    files = [f"datasets/{overlays[0]}.json", *(f"tasks/{name}.json" for name in overlays[1:])]
    parser = parsed("inference.json", *files)
    with torch.device("meta"):
        net = parser.get_parsed_content("segmentation_net").eval()
        image = torch.empty(1, parser.get_parsed_content("in_channels"), *parser["roi_size"])
        logits = net(image)
    crop = () if "nodule" in overlays else tuple(parser["roi_size"])
    assert logits.shape == (1, parser["num_classes"], *crop)
    for name in ("preprocessing", "inferer", "postprocessing"):
        assert callable(parser.get_parsed_content(name))


def test_the_published_demonstration():
    """Its defaults (`setting.py`, `datasets/brains18.py`, `train.py`)."""
    demo = read("presets/medicalnet_demo.json")
    assert demo["image_size"] == demo["roi_size"] == [56, 448, 448]
    assert (demo["batch_size"], demo["max_epochs"], demo["learning_rate"], demo["weight_decay"]) == (1, 200, 1e-3, 1e-3)
    assert demo["optimizer"]["momentum"] == 0.9 and read("train.json")["lr_scheduler"]["gamma"] == 0.99
    assert demo["resample"]["mode"] == "nearest"
