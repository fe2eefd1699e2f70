"""What the paper of `simtrot` pins down, read from the bundle's configs (Hu et al., sections 3 and 4)."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from common.compare.plan import Plan, make_plan
from common.compare.settings import CompareError, read_settings
from common.data.prepare import prepare
from common.data.prepare.split import split_by_subject
from common.data.volume_sampler import VolumeSampler
from common.losses import TokenContrastiveLoss

CONFIGS = Path(__file__).resolve().parents[2] / "bundles" / "simtrot" / "configs"


def parsed(*names: str) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / name) for name in names])
    return parser


def millions(module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


@pytest.mark.parametrize(
    ("files", "encoder", "whole"),
    [
        ([], 119.05, 150.05),
        (["datasets/brats.json", "networks/nnformer_tumour.json"], 29.84, None),
    ],
)
def test_parameters_of_nnformer(files, encoder, whole):
    """Whole nets as counted in the published code; heads for 14 classes (Synapse) there, 9 here."""
    parser = parsed("train.json", *files)
    if whole:
        parser["num_classes"] = 14
    with torch.device("meta"):
        net = parser.get_parsed_content("segmentation_net")
    assert millions(parser.get_parsed_content("encoder")) == pytest.approx(encoder, abs=0.005)
    if whole:
        assert millions(net) == pytest.approx(whole, abs=0.005)


@pytest.mark.parametrize(
    ("files", "grid"),
    [
        ([], (4, 4, 4)),
        (["networks/unetr.json"], (8, 8, 8)),
        (["networks/swin_unetr_synapse.json"], (4, 4, 4)),
        (["datasets/brats.json", "networks/swin_unetr.json"], (4, 4, 4)),
        (["datasets/brats.json", "networks/nnformer_tumour.json"], (4, 4, 4)),
    ],
)
def test_tokens_of_a_crop(files, grid):
    parser = parsed("pretrain.json", *files)
    if "swin" in str(files):  # reads numbers off tensors while it is made, so it has weights
        parser["segmentation_net#feature_size"] = 12
    with torch.device("cpu" if "swin" in str(files) else "meta"):
        stride = parser.get_parsed_content("encoder").strides[-1]
    assert tuple(n // s for n, s in zip(parser.get_parsed_content("roi_size"), stride, strict=True)) == grid
    mask = parser.get_parsed_content("mask_size")
    assert all(n % side == 0 for n, side in zip(parser.get_parsed_content("roi_size"), mask, strict=True))


def test_share_of_the_weighted_pairs_at_the_paper_s_size():
    """Two volumes of 64 tokens and w = 5: two weighted terms of 255, 3.8 % of the denominator at equal similarities."""
    parser = parsed("pretrain.json")
    parser["pretext_loss#weight_form"] = "sum"
    loss = parser.get_parsed_content("pretext_loss")
    assert isinstance(loss, TokenContrastiveLoss)
    weighted = loss.weight_for(2, 64) * 2
    assert weighted / (weighted + 253) == pytest.approx(0.038, abs=0.0005)


def test_settings():
    def read(name):
        return json.loads((CONFIGS / f"pretexts/{name}.json").read_text())

    base = json.loads((CONFIGS / "pretrain.json").read_text())
    assert (base["mask_ratio"], base["mask_size"], base["turned_axes"]) == (0.75, [4, 8, 8], [-2, -1])
    assert (base["learning_rate"], base["optimizer"]["momentum"], base["optimizer"]["nesterov"]) == (1e-4, 0.99, True)
    assert (base["max_epochs"], base["batch_size"], base["roi_size"]) == (1000, 2, [64, 128, 128])
    loss = read("simtrot")["pretext_loss"]
    assert (loss["temperature"], loss["weight"]) == (0.5, 5.0)
    assert loss["weight_form"] == "exponent"  # the sum lets a code of the position through (tests/losses)
    assert base["pretext"] == read("simtrot")["pretext"] and base["pretext_loss"] == loss
    for name in ("simclr", "byol"):
        pretext = read(name)["pretext"]
        assert pretext["pooled"] and pretext["views"]["axes"] is None and pretext["views"]["mask_ratio"] == 0
    simclr = read("simclr")["pretext_loss"]
    assert (simclr["temperature"], simclr["weight"], simclr["weight_form"]) == (0.5, 0, "exponent")
    # On two vectors batch norm leaves plus and minus one, and no gradient.
    assert read("byol")["batch_size"] >= 8
    for name in ("byol", "btrot"):
        (teacher,) = read(name)["+train#handlers"]
        assert (teacher["momentum"], teacher["ramp"]) == (0.99, True)
    assert base["lists"] == ["training"]  # "only use the data in training set within each task"
    train = json.loads((CONFIGS / "train.json").read_text())
    weights = ConfigParser(train).get_parsed_content("loss").get_weights(3)  # of the nnFormer's three heads
    assert [round(7 * weight) for weight in weights] == [4, 2, 1] and sum(weights) == pytest.approx(1)
    assert (train["learning_rate"], train["weight_decay"], train["batches_per_epoch"]) == (0.01, 3e-5, 250)


HIPPOCAMPUS, ACDC, SAMPLE, BRATS = (f"datasets/{name}.json" for name in ("hippocampus", "acdc", "sample", "brats"))


@pytest.mark.parametrize(
    ("files", "cells", "grid"),
    [
        ([], 64, (4, 4, 4)),
        (["networks/swin_unetr_synapse.json"], 64, (4, 4, 4)),
        (["networks/unetr.json"], 8, (8, 8, 8)),
        ([BRATS, "networks/nnformer_tumour.json"], 64, (4, 4, 4)),
        ([BRATS, "networks/swin_unetr.json"], 64, (4, 4, 4)),
        ([HIPPOCAMPUS], 64, (4, 4, 4)),
        ([HIPPOCAMPUS, "networks/nnformer_small.json"], 64, (4, 4, 4)),
        ([HIPPOCAMPUS, "networks/nnformer_tiny.json"], 64, (8, 8, 8)),
        ([HIPPOCAMPUS, "networks/unetr_small.json"], 64, (4, 4, 4)),
        ([HIPPOCAMPUS, "presets/hippocampus_cpu.json"], 64, (4, 4, 4)),
        ([ACDC], 32, (8, 16, 16)),
        ([ACDC, "networks/nnformer_thick_slices.json"], 32, (8, 16, 16)),
        ([ACDC, "presets/acdc_cpu.json"], 32, (4, 8, 8)),
        ([SAMPLE], 64, (4, 4, 4)),
        ([SAMPLE, "networks/nnformer_small.json"], 64, (4, 4, 4)),
        ([SAMPLE, "networks/nnformer_tiny.json"], 64, (8, 8, 8)),
        ([SAMPLE, "networks/swin_unetr_small.json"], 64, (2, 2, 2)),
        ([SAMPLE, "networks/unetr_small.json"], 64, (4, 4, 4)),
    ],
)
def test_a_masked_token_sees_several_cells_and_the_grid_fills_its_windows(files, cells, grid, caplog):
    """As at the paper's size: padding to the windows would tell a token where it lies."""
    parser = parsed("pretrain.json", *files)
    parser["num_classes"] = 2
    if "swin" in str(files):  # reads numbers off tensors while it is made, so it has weights
        parser["segmentation_net#feature_size"] = 12
    with torch.device("cpu" if "swin" in str(files) else "meta"):
        pretext = parser.get_parsed_content("pretext")
    stride = pretext.encoder.strides[-1]
    assert math.prod(step // side for step, side in zip(stride, pretext.views.mask_size, strict=True)) == cells
    assert tuple(side // step for side, step in zip(parser["roi_size"], stride, strict=True)) == grid
    for layer, step in zip(getattr(pretext.encoder, "layers", []), pretext.encoder.strides, strict=False):
        sides = [side // voxels for side, voxels in zip(parser["roi_size"], step, strict=True)]
        assert layer.blocks[0].window >= 4 and list(layer.blocks[0].padded) == sides
    assert not caplog.records


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            ["networks/nnformer_thick_slices.json"],
            r"covers 1 mask cells, of which 0.25 .* set mask_size to \[1, 2, 2\]",
        ),
        ([BRATS, "networks/nnformer_tiny.json"], r"covers 1 mask cells, of which 0.25 .* set mask_size to \[2, 2, 2\]"),
        (
            [HIPPOCAMPUS, "networks/nnformer.json"],
            r"4 x 2 x 2 tokens .* to 8 in place of 64: set roi_size to \[64, 128,",
        ),
        ([ACDC, "networks/nnformer.json"], r"1 x 4 x 4 tokens is smaller .* a token attends to 1 in place of 64"),
    ],
)
def test_a_combination_that_fits_badly_says_so_in_one_sentence(files, said, caplog):
    parser = parsed("pretrain.json", *files)
    parser["num_classes"] = 2
    with torch.device("meta"):
        parser.get_parsed_content("pretext")
    (record,) = caplog.records
    assert re.search(said, record.message)


def test_pretraining_decays_no_norms_biases_and_positions():
    for files in ([], ["datasets/hippocampus.json", "presets/hippocampus_cpu.json"], ["datasets/sample.json"]):
        parser = parsed("pretrain.json", *files, "pretexts/btrot.json")
        for name in ("segmentation_net#embed_dim", "segmentation_net#num_heads"):
            parser[name] = 24 if name.endswith("dim") else [1] * len(parser["segmentation_net"]["depths"])
        parser["device"] = torch.device("cpu")
        groups = parser.get_parsed_content("optimizer").param_groups
        assert {group["weight_decay"] > 0 for group in groups} == {True, False}
        assert all(p.ndim > 1 for group in groups if group["weight_decay"] for p in group["params"])


def test_crops_of_fine_tuning_choose_a_class_first():
    crops = json.loads((CONFIGS / "train.json").read_text())["train"]["crop_transforms"]
    assert crops[0]["per_class"] >= 1000


def test_hippocampi_are_augmented_as_other_scans_but_not_mirrored():
    """With brightness and noise alone, nets from scratch lost 0.06 of Dice from 2 masks."""
    parser = parsed("train.json")
    ranges = {name: parser.get_parsed_content(name) for name in ("rotate_range", "scale_range")}
    expected = []
    for step in parser["augmentation"]:
        if step["_target_"] != "RandFlipd":
            expected.append({**step, **{name: ranges[name] for name in ranges if name in step}})
    expected[0]["padding_mode"] = "border"  # crops end inside the brain
    found = parsed("train.json", HIPPOCAMPUS, "presets/hippocampus_cpu.json")["augmentation"]
    assert found == expected


@pytest.fixture(scope="module")
def synapse(tmp_path_factory) -> Path:
    """A made-up tree of BTCV's 30 labelled scans, prepared without validation scans: the paper's 18 and 12."""
    folder = tmp_path_factory.mktemp("synapse")
    scan = nib.Nifti1Image(np.zeros((4, 4, 4), np.float32), np.eye(4)).to_bytes()
    for number in (*range(1, 11), *range(21, 41)):
        for name in ("img", "label"):
            path = folder / f"RawData/Training/{name}/{name}{number:04d}.nii"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(scan[:-4] + np.float32(number).tobytes())
    content = prepare("synapse", folder / "RawData", folder / "synapse.json", validation=0)
    assert [len(content[name]) for name in ("training", "validation", "test")] == [18, 0, 12]
    return folder


def planned(name: str, synapse: Path, output: Path, **given) -> Plan:
    place = {"dataset_dir": str(synapse), "datalist": str(synapse / "synapse.json"), "output": str(output)}
    return make_plan(read_settings(str(CONFIGS.parent / name), **place, **given))


def test_shares_of_the_labels_are_the_paper_s_numbers_of_volumes(synapse, tmp_path):
    """Figure 5, of 18: "10%, that is only one labeled volume", so shares are rounded down. Pre-training sees all 18."""
    shares = (10, 30, 50, 70, 100)
    found = planned("compare_synapse_labels.json", synapse, tmp_path)
    assert list(found.settings.labels) == [18 * share // 100 for share in shares] == [1, 5, 9, 12, 18]
    trained = {run.labels: found.lists(run) for run in found.runs if run.stage == "train" and run.arm == "simtrot_w"}
    assert {labels: len(lists["training"]) for labels, lists in trained.items()} == {
        n: n for n in found.settings.labels
    }
    [pretrain] = [run for run in found.runs if run.stage == "pretrain"]
    assert len(found.lists(pretrain)["training"]) == 18
    assert found.validated_on_test and len(found.test) == 12


@pytest.mark.parametrize("table", ["", "_parts", "_mask_and_weight", "_unetr", "_swin_unetr"])
def test_the_paper_s_lists_train_on_all_18_scans(table, synapse, tmp_path):
    """By the preset that the bundle's page adds to each settings file of a table; without it the run is refused."""
    name = f"compare_synapse{table}.json"
    own = json.loads((CONFIGS.parent / name).read_text())["config_file"]
    with pytest.raises(CompareError, match="the list 'validation' is empty"):
        planned(name, synapse, tmp_path, arms="scratch")
    files = ",".join([*own, "presets/synapse_protocol.json"])
    found = planned(name, synapse, tmp_path, arms="scratch", config_file=files)
    [train] = [run for run in found.runs if run.stage == "train"]
    assert len(found.lists(train)["training"]) == train.labels == 18
    assert found.validated_on_test and len(found.test) == 12


def test_numbers_of_tumours():
    """484 in "three parts, train/validation/test, with ratio 80%/15%/5%", as the bundle's page prepares them."""
    readme = (CONFIGS.parent / "docs/README.md").read_text()
    shares = re.search(r"Task01_BrainTumour/brats.json \\\n *--validation (\S+) --test (\S+)", readme).groups()
    lists = split_by_subject([{"subject": str(n), "label": "mask"} for n in range(484)], *map(float, shares))
    assert [len(lists[name]) for name in ("training", "validation", "test")] == [387, 73, 24]
    papers = (CONFIGS.parents[2] / "docs/papers.json").read_text()
    assert len(re.findall(r"Task01 \(`prepare decathlon .*? --validation {} --test {}`".format(*shares), papers)) == 3


@pytest.mark.parametrize(("table", "scans", "epochs"), [("Table 1", 18, 1000), ("Table 2", 387, 500)])
def test_the_papers_page_says_how_many_steps_byol_makes(table, scans, epochs):
    """Batches of 8 in place of the others' 2, in as many epochs."""
    data = [{"image": str(number)} for number in range(scans)]
    steps = []
    for files in ([], ["pretexts/byol.json"]):
        parser = parsed("pretrain.json", *files)
        size, batches = (parser.get_parsed_content(name) for name in ("batch_size", "batches_per_epoch"))
        steps.append(VolumeSampler(data, size, batches).batches)
    papers = json.loads((CONFIGS.parents[2] / "docs/papers.json").read_text())["papers"]
    [item] = [x for paper in papers if paper["bundle"] == "simtrot" for x in paper["items"] if x["item"] == table]
    [row] = [row for row in item["rows"] if row["row"] == "nnFormer, BYOL"]
    assert f"{steps[1]} steps an epoch in place of {steps[0]}" in row["note"]
    equal = int(re.search(r'"max_epochs": (\d+)', row["note"])[1])
    assert equal * steps[1] == pytest.approx(epochs * steps[0], rel=0.001)
