"""What the paper of `med3d`, its published code and its README pin down (Chen et al., arXiv 1904.00625; MedicalNet)."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from common.networks import DenseASPP

CONFIGS = Path(__file__).resolve().parents[2] / "bundles" / "med3d" / "configs"
# Depth -> millions of parameters, and with the norms' running statistics, as the README of the published code has it.
PUBLISHED = {
    10: (14.356, 14.36),
    18: (32.986, 32.99),
    34: (63.296, 63.31),
    50: (46.155, 46.21),
    101: (85.201, 85.31),
    152: (117.36, 117.51),
    200: (126.56, 126.74),
}


def parsed(*names: str) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / name) for name in names])
    return parser


def read(name: str) -> dict:
    return json.loads((CONFIGS / name).read_text())


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Nobody looks at the weights, and drawing them takes longest."""
    monkeypatch.setattr(torch.nn.init, "kaiming_normal_", lambda tensor, *args, **kwargs: tensor)


@pytest.mark.parametrize("depth", PUBLISHED)
def test_backbones_have_the_published_numbers_of_parameters_and_stride_8(depth):
    """Those of `networks/`."""
    with torch.device("meta"):
        net = parsed("train.json", f"networks/resnet{depth}.json").get_parsed_content("segmentation_net").encoder
    parameters = sum(parameter.numel() for parameter in net.parameters())
    statistics = sum(tensor.numel() for name, tensor in net.named_buffers() if "tracked" not in name)
    assert parameters / 1e6 == pytest.approx(PUBLISHED[depth][0], abs=0.0006)
    assert (parameters + statistics) / 1e6 == pytest.approx(PUBLISHED[depth][1], abs=0.005)
    assert net.strides[2:] == ((8, 8, 8),) * 3
    if depth in (18, 50):  # of either kind of block; the others have more of them, which all keep the size
        maps = net(torch.empty(1, 1, 33, 48, 64, device="meta"))
        assert [tuple(x.shape[2:]) for x in maps[2:]] == [(5, 6, 8)] * 3


@pytest.mark.parametrize(("hidden", "growth", "millions"), [(512, 128, 14.77), (128, 64, 2.52)])
def test_dense_aspp_on_2048_channels(hidden, growth, millions):
    with torch.device("meta"):
        blocks = DenseASPP([2048], 2, hidden, growth).blocks
    assert sum(parameter.numel() for parameter in blocks.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


def test_settings_of_pretraining():
    """Chen et al., arXiv 1904.00625, section 4.1: cross-entropy, SGD at 0.1 with momentum 0.9 and decay 0.001."""
    assert parsed("pretrain.json")["pretext_loss"] == parsed("train.json")["task_loss"]
    assert type(parsed("pretrain.json").get_parsed_content("loss")).__name__ == "VoxelCrossEntropy"
    loss = parsed("pretrain.json", "presets/dice_cross_entropy.json").get_parsed_content("loss")
    assert type(loss).__name__ == "DiceCrossEntropy"
    parser = parsed("pretrain.json", "presets/sgd.json")
    parser["network"] = torch.nn.Linear(2, 2)
    optimizer = parser.get_parsed_content("optimizer")
    assert isinstance(optimizer, torch.optim.SGD)
    assert [optimizer.defaults[key] for key in ("lr", "momentum", "weight_decay")] == [0.1, 0.9, 0.001]


def test_3dseg8():
    """The eight sets, by default; classes with background as the Decathlon's `dataset.json` have them."""
    parser = parsed("pretrain.json")
    names = [domain["name"] for domain in parser["pretrain_datalist"]]
    assert dict(zip(names, parser.get_parsed_content("branch_classes"), strict=True)) == {
        "brain": 4, "hippocampus": 3, "prostate": 3, "liver": 3, "heart": 2, "pancreas": 3, "vessel": 3, "spleen": 2,
    }  # fmt: skip
    assert read("datasets/3dseg8.json")["pretrain_datalist"] == read("pretrain.json")["pretrain_datalist"]
    without = [domain for domain in read("pretrain.json")["pretrain_datalist"] if domain["name"] != "liver"]
    assert read("datasets/domains_without_liver.json")["pretrain_datalist"] == without  # LiTS is the Decathlon's liver
    with torch.device("meta"):
        net = parser.get_parsed_content("network_def")
    assert [branch.out_channels for branch in net.decoder.branches] == parser.get_parsed_content("branch_classes")
    assert {branch.kernel_size for branch in net.decoder.branches} == {(1, 1, 1)}


DATASETS = sorted(path.stem for path in (CONFIGS / "datasets").glob("*.json"))


@pytest.mark.parametrize("name", [name for name in DATASETS if "label_scheme" in read(f"datasets/{name}.json")])
def test_classes_of_a_data_set_are_those_of_its_label_map(name):
    parser = parsed("train.json", f"datasets/{name}.json")
    classes = parser.get_parsed_content("label_map")
    names, count = (parser.get_parsed_content(key) for key in ("structure_names", "num_classes"))
    assert len(classes) == len(names) == count
    assert all(classes[number] for number in range(1, len(classes)))
    assert all(size >= roi for size, roi in zip(parser["image_size"], parser["roi_size"], strict=True))


def test_intensities_are_clipped_by_percentiles_or_by_the_window():
    """Percentiles 0.5 and 99.5 (section 3.1), for LiTS -200 to 250 HU (3.3); then mean 0 and standard deviation 1.

    Of the whole volume as in the paper with the preset, of the foreground by default.
    """
    torch.manual_seed(0)
    image = torch.randn(1, 24, 24, 24) * 300 + 40
    image[0, 0, 0] = 3000
    values = image.numpy()
    for files, (low, high) in (
        (["train.json"], np.percentile(values, [0.5, 99.5])),
        (["train.json", "datasets/lits.json"], (-200, 250)),
    ):
        made = parsed(*files, "presets/whole_volume.json").get_parsed_content("intensity")({"image": image.clone()})
        clipped = values.clip(low, high)
        np.testing.assert_allclose(made["image"], (clipped - clipped.mean()) / clipped.std(), atol=1e-3)


def test_the_first_stage_of_the_liver_is_one_net_that_sees_the_same_in_training_and_inference():
    alone = parsed("train.json", "tasks/liver_coarse.json")
    both = parsed("inference.json", "tasks/liver_fine.json", "tasks/liver_two_stage.json")
    with torch.device("meta"):
        nets = [alone.get_parsed_content("segmentation_net"), both.get_parsed_content("coarse_net")]
    shapes = [{name: tensor.shape for name, tensor in net.state_dict().items()} for net in nets]
    assert shapes[0] == shapes[1]
    item = {"image": torch.rand(1, 20, 31, 6), "label": torch.zeros(1, 20, 31, 6)}
    seen = []

    def look(image):
        seen.append(image[0])
        return torch.zeros(1, 2, *image.shape[2:])

    for parser, name in ((alone, "inferer"), (both, "inferer#coarse_inferer")):
        parser.update({"roi_size": [8, 12, 9]})
        parser.parse()
        parser.get_parsed_content(name)(item["image"][None], look)
    (resize,) = alone.get_parsed_content("crop_transforms")
    trained_on = resize(item)["image"].as_tensor()
    assert trained_on.shape == (1, 8, 12, 9)
    assert torch.equal(seen[0], trained_on) and torch.equal(seen[1], trained_on)


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
    assert logits.shape == (1, parser.get_parsed_content("num_classes"), *crop)
    for name in ("preprocessing", "inferer", "postprocessing"):
        assert callable(parser.get_parsed_content(name))


def test_the_published_demonstration_has_slices_first(tmp_path):
    """`datasets/brains18.py`: depth x height x width, zoomed to 56, 448 and 448, whatever the axes in the file."""
    parser = parsed("inference.json", "presets/medicalnet_demo.json")
    assert parser["image_size"] == parser["roi_size"] == [56, 448, 448]
    parser.update({"image_size": [56, 32, 40]})
    slices = np.broadcast_to(np.arange(1, 8, dtype=np.float32), (20, 24, 7))
    volume = nib.Nifti1Image(np.ascontiguousarray(slices), np.diag([1.0, 1.0, 5.0, 1.0]))
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt("PIR"))
    nib.save(volume.as_reoriented(turn), tmp_path / "scan.nii.gz")
    image = parser.get_parsed_content("preprocessing")({"image": str(tmp_path / "scan.nii.gz")})["image"]
    assert image.shape == (1, 56, 32, 40) and nib.aff2axcodes(image.affine.numpy()) == ("S", "A", "R")
    planes = image[0].flatten(1)
    assert torch.equal(planes.amin(1), planes.amax(1))  # a plane is of one slice of the scan
    assert planes[:, 0].diff().ge(0).all() and len(planes[:, 0].unique()) == 7
