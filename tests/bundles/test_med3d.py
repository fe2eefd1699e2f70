"""The bundle `med3d`: pre-training on domains, and each of its transfers, tiny."""

from __future__ import annotations

import csv
import itertools
import json
import logging
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose

from common.checks import first_cause
from common.data import label_names
from common.networks import BranchDecoder, DenseASPP, FrozenBatchNorm, LungDecoder, Med3DNet, MedicalNetHead
from common.networks.sync_batch_norm import SyncBatchNorm
from common.weights import read_encoder

CONFIGS = Path(__file__).resolve().parents[2] / "bundles" / "med3d" / "configs"
SAMPLE = {"spacing": [4.0] * 3, "image_size": [32] * 3, "roi_size": [32] * 3, "batches_per_epoch": 1, "max_epochs": 1}
# Crops of 16 voxels, but validation scans whole instead of from many windows.
SMALL = {"roi_size": [16] * 3, "segmentation_net#width": 4, "batch_size": 1}
SMALL |= {"validate#inferer": {"_target_": "SimpleInferer"}}
DOMAINS = {f"pretrain_datalist#{number}#spacing": [4.0] * 3 for number in (0, 1)} | {"batches_per_epoch": 2}


@pytest.fixture(scope="module")
def run(run_bundle):
    def run(*files, **overrides):
        given = SAMPLE | (DOMAINS if files[0] == "pretrain.json" else {}) | overrides
        return run_bundle(*files, bundle="med3d", **given)

    return run


@pytest.fixture(scope="module")
def encoder(run, tmp_path_factory):
    """A folder with an encoder pre-trained a little on heads and lesions."""
    folder = tmp_path_factory.mktemp("encoder")
    run("pretrain.json", "datasets/sample.json", output_dir=str(folder), batches_per_epoch=2)
    return folder


@pytest.mark.way("run", bundle="med3d")
def test_pretraining(encoder, event_images):
    assert list(event_images(encoder / "tensorboard")) == ["validation/0"]
    state, record = read_encoder(encoder / "encoder.safetensors")
    assert record["method"] == "MultiBranchNet" and record["architecture"]["name"] == "DilatedResNet"
    made = record["preparation"]
    assert made["spacing"] == {"heads": [4, 4, 4], "lesions": [4, 4, 4]}
    (step,) = made["intensity"]
    assert (step["transform"], step["lower"], step["upper"]) == ("NormalizeForegroundd", 0.5, 99.5)
    assert {Path(path).name for path in record["data"]} == {"skull.json", "lesion.json"}
    assert state["conv1.weight"].shape == (16, 1, 7, 7, 7)


def test_padding_does_not_count_in_pretraining(run, tmp_path):
    """Scans that are smaller than the crops, as those of the hippocampus are."""
    workflow = run(
        "pretrain.json",
        "datasets/sample.json",
        output_dir=str(tmp_path),
        execute=False,
        roi_size=[64] * 3,
        cache="none",
    )
    (item,) = workflow.parser.get_parsed_content("train#dataset")[0]
    whole = workflow.parser.get_parsed_content("validate#dataset")[0]
    label = item["label"].as_tensor()[None]
    padding = label == -1
    assert label.shape[2:] == item["image"].shape[1:] == (64, 64, 64)
    assert (~padding).sum() == (whole["label"] != -1).sum() < label.numel()
    for volume in (item, whole):
        least = volume["image"].min()
        assert (volume["image"][volume["label"] == -1] == least).all() and least < -0.5
    logits = torch.randn(1, 2, 64, 64, 64, requires_grad=True)
    loss = workflow.parser.get_parsed_content("loss")(logits, label)
    inside = ~padding[:, 0]
    voxels, truth = logits.movedim(1, -1)[inside], label[:, 0][inside].long()
    lesion = voxels.softmax(-1)[:, 1]
    overlap = (2 * lesion[truth == 1].sum() + 1e-5) / (lesion.sum() + (truth == 1).sum() + 1e-5)
    expected = torch.nn.functional.cross_entropy(voxels, truth) + 1 - overlap
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert not logits.grad.movedim(1, -1)[~inside].any() and logits.grad.movedim(1, -1)[inside].all()


@pytest.mark.parametrize("overlays", [(), ("presets/short.json",), ("tasks/liver_fine.json",)])
def test_padding_does_not_count_in_transfer(run, tmp_path, one_test_scan, overlays):
    """It looks as the background does, and teaches nothing."""
    workflow = run(
        "train.json",
        "datasets/sample.json",
        *overlays,
        output_dir=str(tmp_path),
        execute=False,
        task="skull",
        label_scheme="binary",
        num_classes=2,
        datalist=str(one_test_scan / "skull.json"),
        image_size=[64] * 3,
        roi_size=[64] * 3,
        cache="none",
    )
    item = workflow.parser.get_parsed_content("train#dataset")[0]
    item = item[0] if isinstance(item, list) else item
    whole = workflow.parser.get_parsed_content("validate#dataset")[0]
    assert (item["label"] == -1).any() and (item["label"] == 1).any()
    for volume in (item, whole) if "tasks/liver_fine.json" not in overlays else (whole,):  # which turns its crops
        padding = volume["image"][volume["label"] == -1]
        assert (padding == padding[0]).all() and padding[0] <= volume["image"].min() and padding[0] < -0.5
    label = item["label"].as_tensor()[None]
    logits = torch.randn(1, 2, *label.shape[2:], requires_grad=True)
    workflow.parser.get_parsed_content("loss")(logits, label).backward()
    assert not logits.grad.movedim(1, -1)[label[:, 0] == -1].any() and logits.grad.any()
    score = workflow.parser.get_parsed_content("scoring")
    scored = score({"pred": logits.detach()[0], "label": item["label"]})
    assert (scored["pred"][0][label[0, 0] == -1] == 1).all() and (scored["label"].sum(0) == 1).all()


def test_a_step_of_one_domain_leaves_the_other_branch_alone(run, tmp_path):
    """Also in the optimiser, whose momentum would move a branch with a gradient of zero."""
    seen = []

    def note(workflow):
        parser = workflow.parser
        trainer, net = parser.get_parsed_content("train#trainer"), parser.get_parsed_content("network_def")

        def look(engine):
            branch = int(engine.state.batch["branch"][0])
            seen.append((branch, [part.weight.detach().clone() for part in net.decoder.branches]))

        from ignite.engine import Events

        trainer.add_event_handler(Events.ITERATION_COMPLETED, look)

    settings = SMALL | {"batches_per_epoch": 4}
    run("pretrain.json", "datasets/sample.json", output_dir=str(tmp_path), before=note, **settings)
    assert {branch for branch, _ in seen} == {0, 1} and len(seen) == 4
    for (_, before), (branch, after) in itertools.pairwise(seen):
        assert not torch.equal(before[branch], after[branch])
        assert torch.equal(before[1 - branch], after[1 - branch])


def test_the_encoder_goes_into_every_transfer(run, encoder, tmp_path, caplog):
    path = encoder / "encoder.safetensors"
    state, _ = read_encoder(path)
    coarse = ("networks/stride_32.json", "tasks/liver_coarse.json")
    for files in (("tasks/lung.json",), ("tasks/nodule.json",), coarse, ("tasks/liver_fine.json",)):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            workflow = run(
                "train.json",
                "datasets/sample.json",
                *files,
                output_dir=str(tmp_path),
                pretrained_encoder=str(path),
                execute=False,
                data={"training": [{}], "validation": [{}], "test": []},
            )
        report = caplog.text[caplog.text.index("transfer report") :]
        assert "100.0%" in report
        assert ("warning" in report.lower()) == ("made with dilations [2, 4]" in report) == (files == coarse)
        own = workflow.parser.get_parsed_content("segmentation_net").encoder.state_dict()
        assert all(torch.equal(own[name], tensor) for name, tensor in state.items())


def test_a_resumed_pretraining_has_the_bits_of_one_that_was_not_killed(run, tmp_path):
    """The sampler's order, too, goes on where it was."""
    overlays = ("pretrain.json", "datasets/sample.json")
    settings = SMALL | {"batches_per_epoch": 3, "max_epochs": 2, "val_interval": 1, "device": "cpu"}

    def kill(workflow):
        from ignite.engine import Events

        trainer = workflow.parser.get_parsed_content("train#trainer")
        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=5), lambda: 1 / 0)

    run(*overlays, **settings, output_dir=str(tmp_path / "whole"))
    with pytest.raises(RuntimeError):
        run(*overlays, **settings, output_dir=str(tmp_path / "killed"), before=kill, checkpoint_interval=1)
    run(*overlays, **settings, output_dir=str(tmp_path / "killed"), resume=True, checkpoint_interval=1)
    states = [read_encoder(tmp_path / name / "encoder.safetensors")[0] for name in ("whole", "killed")]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file, skipinitialspace=True))


@pytest.fixture(scope="module")
def one_test_scan(cohort, tmp_path_factory):
    """Folder with the cohort's datalists, whose test lists have one item."""
    folder = tmp_path_factory.mktemp("lists")
    for name in ("structures4.json", "skull.json"):
        content = json.loads((cohort / name).read_text())
        (folder / name).write_text(json.dumps(content | {"test": content["test"][:1]}))
    return folder


def trained(run, folder, *overlays, steps=2, **settings):
    """Trained one epoch."""
    return run("train.json", *overlays, **settings, output_dir=str(folder), batches_per_epoch=steps)


def evaluated(run, folder, *overlays, **settings):
    """On the test list."""
    return run("train.json", "evaluate.json", *overlays, **settings, output_dir=str(folder))


def predict(run, folder, *overlays, **settings):
    given = {"output_dir": str(folder / "predictions"), "model_path": str(folder / "model.pt")} | settings
    left_out = dict.fromkeys(("batches_per_epoch", "max_epochs"))
    run_settings = {key: value for key, value in (SAMPLE | given).items() if key not in left_out}
    run("inference.json", *overlays, workflow_type="inference", **run_settings)


def check_masks(folder, cohort, datalist):
    """Label maps of the test scans, which lie on the scans' grids."""
    (item,) = json.loads(datalist.read_text())["test"]
    image = nib.load(cohort / item["image"])
    name = Path(item["image"]).name.removesuffix(".nii.gz")
    prediction = nib.load(next(folder.rglob(f"{name}_seg.nii.gz")))
    assert prediction.shape == image.shape and abs(prediction.affine - image.affine).max() < 1e-4
    return set(prediction.get_fdata().astype(int).ravel())


@pytest.mark.way("run", bundle="med3d")
def test_segmentation(run, cohort, one_test_scan, event_images, tmp_path):
    overlays, data = ("datasets/sample.json",), {"datalist": str(one_test_scan / "structures4.json")}
    trained(run, tmp_path, *overlays, **data)
    assert list(event_images(tmp_path / "tensorboard")) == ["validation/0"]
    evaluated(run, tmp_path, *overlays, **data)
    table = rows(tmp_path / "eval/val_mean_dice_raw.csv")
    assert len(table) == 1 and "cortex" in table[0]
    predict(run, tmp_path, *overlays, **data)
    assert check_masks(tmp_path / "predictions", cohort, one_test_scan / "structures4.json") <= set(range(5))


def test_pretraining_with_the_files_of_a_classification(run, tmp_path):
    """Comparisons give both trainings the same files; the task's loss is for one number a scan."""
    task = ("presets/short.json", "tasks/nodule.json", "tasks/lesion_size.json")
    run("pretrain.json", "datasets/sample.json", *task, output_dir=str(tmp_path))
    assert (tmp_path / "encoder.safetensors").is_file()


@pytest.mark.parametrize("task", ["age_group", "lesion_size"])
def test_classification(run, event_images, tmp_path, task):
    lesions = task == "lesion_size"
    overlays = ["datasets/sample.json", *(["datasets/sample_lesions.json"] if lesions else [])]
    overlays += ["tasks/nodule.json", f"tasks/{task}.json"]
    own = {"large_lesion": 10.0} if lesions else {}
    trained(run, tmp_path, *overlays, **own)
    assert not event_images(tmp_path / "tensorboard")
    evaluated(run, tmp_path, *overlays, **own)
    lines = (tmp_path / "eval/metrics.csv").read_text().splitlines()
    metrics = {name: float(value) for name, value in (re.split(r"\s*[\t,]\s*", line) for line in lines)}
    table = rows(tmp_path / "eval/predictions.csv")
    assert metrics["val_accuracy"] == np.mean([row["label"] == row["prediction"] for row in table])
    if lesions:  # of one task, since nothing in inference is the task's own
        predict(run, tmp_path, *overlays)
        predicted = rows(tmp_path / "predictions/predictions.csv")
        assert len(predicted) == 2
        for row in predicted:
            probabilities = [float(row[f"probability_{number}"]) for number in range(2)]
            assert sum(probabilities) == pytest.approx(1, abs=1e-4)
            assert int(row["prediction"]) == np.argmax(probabilities) and row["label"] == ""


def test_augmentation_is_of_training_alone(run, tmp_path):
    """The preset moves image and label alike, a training item anew each time, and no validation item."""
    files = "train.json", "datasets/sample.json", "presets/augmentation.json"
    workflow = run(*files, output_dir=str(tmp_path), execute=False, crop_transforms=[])
    training, validation = (workflow.parser.get_parsed_content(f"{part}#dataset") for part in ("train", "validate"))
    draws = [training[0] for _ in range(8)]
    assert any(not torch.equal(draws[0]["image"], draw["image"]) for draw in draws)  # one in four is left as it is
    assert all(set(draw["label"].unique().tolist()) <= {-1, 0, 1, 2, 3, 4} for draw in draws)
    assert torch.equal(validation[0]["image"], validation[0]["image"])
    steps = workflow.parser.get_parsed_content("augmentation")
    steps[0].prob = 1.0
    label = torch.zeros(1, 24, 24, 24)
    label[:, 6:14, 8:20, 5:12] = 1
    moved = steps[0].set_random_state(0)({"image": label.clone(), "label": label})
    assert not torch.equal(moved["label"].clamp(0), label)
    assert ((moved["image"] > 0.5) == (moved["label"] == 1)).float().mean() > 0.99


NETWORKS = sorted(path.stem for path in (CONFIGS / "networks").glob("resnet*.json"))


@pytest.mark.parametrize("task", [[], ["tasks/lung.json"]], ids=["own", "lung"])
@pytest.mark.parametrize("base", ["pretrain.json", "train.json", "inference.json"])
@pytest.mark.parametrize(
    "files",
    [[], ["datasets/sample.json"], ["networks/resnet10_small.json", "presets/short.json"]]
    + [["networks/resnet10_small.json", f"networks/{name}.json"] for name in NETWORKS],
    ids=lambda files: "+".join(Path(file).stem for file in files) or "default",
)
def test_a_decoder_is_as_wide_as_its_encoder(base, task, files):
    """Four times the encoder's first layer, whichever network came before."""
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / name) for name in (base, *task, *files)])
    with torch.device("meta"):
        net = parser.get_parsed_content("segmentation_net")
    width = net.encoder.conv1.out_channels
    assert width == (16 if files and ("small" in files[-1] or "sample" in files[-1]) else 64)
    groups = [layer.out_channels for layer in net.head.layers if isinstance(layer, torch.nn.ConvTranspose3d)]
    assert groups == [4 * width, 2 * width, width]


NORMS = {"batch": torch.nn.BatchNorm3d, "group": torch.nn.GroupNorm, "frozen": FrozenBatchNorm}
KINDS = (torch.nn.modules.batchnorm._BatchNorm, torch.nn.GroupNorm, FrozenBatchNorm)
HEADS_WITH_NORMS = (LungDecoder, DenseASPP, MedicalNetHead)
# Every file that has a net or a head of its own.
NETS = sorted(
    str(path.relative_to(CONFIGS))
    for path in CONFIGS.glob("*/*.json")
    if any(name.partition("#")[0] in ("segmentation_net", "head") for name in json.loads(path.read_text()))
)


def norms(part) -> list:
    return [module for module in part.modules() if isinstance(module, KINDS)]


@pytest.mark.parametrize("files", [[], *([name] for name in NETS)], ids=lambda files: "+".join(files) or "default")
@pytest.mark.parametrize("base", ["pretrain.json", "train.json", "inference.json"])
def test_norm_reaches_encoder_and_head(base, files):
    """Of every file with a net or a head of its own; heads have no statistics to freeze."""
    for name in ("group", "frozen"):  # batch is the default
        parser = ConfigParser()
        parser.read_config([str(CONFIGS / file) for file in (base, *files)])
        parser["norm"] = name
        with torch.device("meta"):
            net = parser.get_parsed_content("segmentation_net")
        assert {type(norm) for norm in norms(net.encoder)} == {NORMS[name]}
        expected = {NORMS["batch" if name == "frozen" else name]} if isinstance(net.head, HEADS_WITH_NORMS) else set()
        assert {type(norm) for norm in norms(net.head)} == expected


def test_files_with_a_net_or_a_head_are_found():
    assert {"datasets/sample.json", "presets/short.json", "presets/medicalnet_demo.json", "tasks/liver_fine.json"} < {
        *NETS
    }
    assert {f"networks/{name}.json" for name in [*NETWORKS, "stride_32"]} < {*NETS}


@pytest.mark.parametrize("stage", ["pretrain", "train", "evaluate"])
def test_batch_norms_are_synchronised_with_several_processes(stage):
    """Encoder and head; group norms need not be, and frozen ones exchange nothing."""
    files = ["train.json", "evaluate.json"] if stage == "evaluate" else [f"{stage}.json"]
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        for name, kind in {**NORMS, "batch": SyncBatchNorm}.items():
            parser = ConfigParser()
            parser.read_config([str(CONFIGS / file) for file in (*files, f"multi_gpu_{stage}.json")])
            parser.update({"norm": name, "device": torch.device("cpu"), "amp": False, "branch_classes": [2, 3]})
            parser.update({"segmentation_net#depth": 10, "segmentation_net#width": 4, "head_features": 8})
            if (stage, name) == ("pretrain", "frozen"):  # which is refused
                continue
            net = parser.get_parsed_content("network").module
            assert {type(norm) for norm in norms(net.encoder)} == {kind}
            if stage != "pretrain":  # whose branches have no norms
                assert {type(norm) for norm in norms(net.head)} == {SyncBatchNorm if name == "frozen" else kind}
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("made", ["batch", "group"])
def test_the_coarse_net_has_the_norm_of_its_file(tmp_path, made):
    """The fine net has that of the configs."""
    net = Med3DNet(lambda channels: BranchDecoder(channels, [2]), width=4, norm=made)
    torch.save(net.state_dict(), tmp_path / "model.pt")
    for name, kind in NORMS.items():
        parser = ConfigParser()
        parser.read_config(
            [str(CONFIGS / file) for file in ("inference.json", "tasks/liver_fine.json", "tasks/liver_two_stage.json")]
        )
        parser.update({"norm": name, "coarse_model_path": str(tmp_path / "model.pt"), "num_classes": 2})
        parser.update({"segmentation_net#depth": 10, "segmentation_net#width": 4})
        coarse, fine = (parser.get_parsed_content(id) for id in ("coarse_net", "segmentation_net"))
        assert {type(norm) for norm in norms(coarse)} == {NORMS[made]}
        assert {type(norm) for norm in norms(fine.encoder)} == {kind}


@pytest.mark.parametrize("base", ["train.json", "pretrain.json"])
def test_frozen_norms_from_scratch_are_refused(run, tmp_path, base):
    with pytest.raises(RuntimeError) as raised:
        run(base, "datasets/sample.json", output_dir=str(tmp_path), norm="frozen", **SMALL)
    text = str(first_cause(raised.value))
    assert text.startswith("norm is frozen, but the net starts from random weights") and "batch or group" in text
    assert ("pretrained_encoder" in text) == (base == "train.json")
    assert not list(tmp_path.glob("*.safetensors")) and not list(tmp_path.glob("*.pt"))


def test_frozen_norms_keep_the_statistics_of_pretraining(run, encoder, cohort, one_test_scan, tmp_path):
    """Training, evaluation and inference; the file also fits a net with batch norms, which then does the same."""
    path, data = encoder / "encoder.safetensors", {"datalist": str(one_test_scan / "structures4.json")}
    trained(run, tmp_path, "datasets/sample.json", **data, norm="frozen", pretrained_encoder=str(path))
    state, (made, _) = torch.load(tmp_path / "model.pt", weights_only=True), read_encoder(path)
    state = state.get("model", state)
    kept = [name for name in made if "running" in name]
    assert kept and all(torch.equal(state[f"encoder.{name}"], made[name]) for name in kept)
    assert not torch.equal(state["encoder.bn1.weight"], made["bn1.weight"])  # which trains
    scores = []
    for norm in ("frozen", "batch"):
        evaluated(run, tmp_path, "datasets/sample.json", **data, norm=norm)
        scores.append((tmp_path / "eval/val_mean_dice_raw.csv").read_text())
    assert scores[0] == scores[1]
    predict(run, tmp_path, "datasets/sample.json", **data, norm="frozen")
    assert check_masks(tmp_path / "predictions", cohort, one_test_scan / "structures4.json") <= set(range(5))


def test_malignancy_of_lidc():
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / "train.json"), str(CONFIGS / "tasks/nodule.json")])
    (transform,) = parser.get_parsed_content("label_transforms")
    assert [transform({"label": rating})["label"] for rating in range(1, 6)] == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("base", ["train.json", "inference.json"])
def test_nodules_keep_their_hounsfield_units(base):
    """A lung window, the same for every crop: a nodule of 50 HU is 0.5 beside much air and beside none."""
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / name) for name in (base, "datasets/lidc.json", "tasks/nodule.json")])
    intensity = parser.get_parsed_content("intensity")
    for around in (-1000.0, 50.0):
        image = torch.full((1, 8, 8, 8), around)
        image[0, 4, 4, 4] = 50
        assert float(intensity({"image": image})["image"][0, 4, 4, 4]) == pytest.approx(0.5)


def test_nodules_are_turned_and_their_classes_count_alike():
    parser = ConfigParser()
    parser.read_config(
        [
            str(CONFIGS / name)
            for name in ("train.json", "datasets/lidc.json", "tasks/nodule.json", "tasks/nodule_balanced.json")
        ]
    )
    parser["data"] = {"training": [{"label": rating} for rating in (1, 2, 3, 5)]}
    parser["device"] = "cpu"
    assert parser.get_parsed_content("task_loss").weight.tolist() == pytest.approx([4 / 6, 2])
    augment = Compose(parser.get_parsed_content("augmentation")).set_random_state(0)
    image = torch.rand(1, 64, 64, 64)
    assert not torch.equal(augment({"image": image})["image"], image)


@pytest.fixture(scope="module")
def liver(run, one_test_scan, tmp_path_factory):
    """Both stages, trained a step or two on the sample's heads in place of livers."""
    folder = tmp_path_factory.mktemp("liver")
    organ = {
        "datalist": str(one_test_scan / "skull.json"),
        "label_scheme": "binary",
        "task": "skull",
        "segmentation_net#width": 4,
    }
    head = {"head#hidden": 8, "head#growth": 4}
    coarse = ("datasets/sample.json", "networks/stride_32.json", "tasks/liver_coarse.json")
    trained(run, folder / "coarse", *coarse, **organ)
    trained(run, folder / "fine", "datasets/sample.json", "tasks/liver_fine.json", **organ, **head, margin=2)
    # First stages that call everything liver, and everything background.
    state = torch.load(folder / "coarse/model.pt", weights_only=True)
    for name, bias in (("keen", [-1e4, 1e4]), ("blind", [1e4, -1e4])):
        state["head.branches.0.bias"].copy_(torch.tensor(bias))
        torch.save(state, folder / f"{name}.pt")
    return folder, organ | head


def test_two_stages(run, liver, cohort, one_test_scan, caplog):
    folder, own = liver
    overlays = ("datasets/sample.json", "tasks/liver_fine.json", "tasks/liver_two_stage.json")
    own = own | {
        "coarse_model_path": str(folder / "keen.pt"),
        "coarse_size": [32] * 3,
        "margin": 2,
    }
    workflow = evaluated(run, folder / "fine", *overlays, "metrics/lits.json", **own)
    nets = [workflow.parser.get_parsed_content(name) for name in ("coarse_net", "segmentation_net")]
    assert [net.encoder.strides[-1] for net in nets] == [(32,) * 3, (8,) * 3]
    assert len(rows(folder / "fine/eval/val_mean_dice_raw.csv")) == 1
    overlap, dice = (rows(folder / f"fine/eval/{name}_raw.csv")[0]["mean"] for name in ("val_voe", "val_mean_dice"))
    assert float(overlap) == pytest.approx(1 - float(dice) / (2 - float(dice)), abs=1e-4)  # of one class
    assert all(float(rows(folder / f"fine/eval/{name}_raw.csv")[0]["mean"]) >= 0 for name in ("val_rvd", "val_assd"))
    del own["label_scheme"]
    predict(run, folder / "fine", *overlays, **own)
    assert "the first stage finds nothing" not in caplog.text
    check_masks(folder / "fine/predictions", cohort, one_test_scan / "skull.json")

    own["coarse_model_path"] = str(folder / "blind.pt")
    predict(run, folder / "fine", *overlays, **own, output_dir=str(folder / "blind"))
    assert caplog.text.count("the first stage finds nothing") == 1
    assert check_masks(folder / "blind", cohort, one_test_scan / "skull.json") == {0}


@pytest.mark.parametrize("coarse", ["keen", "blind"])
def test_the_fine_net_may_be_chosen_by_both_stages(run, liver, tmp_path, coarse):
    """In boxes that the coarse net finds, not in true ones: where it finds nothing, no fine net is good."""
    folder, own = liver
    overlays = ("datasets/sample.json", "tasks/liver_fine.json", "tasks/liver_two_stage.json")
    own = own | {"coarse_model_path": str(folder / f"{coarse}.pt"), "coarse_size": [32] * 3, "margin": 2}
    parser = trained(run, tmp_path, *overlays, **own).parser
    dice = parser.get_parsed_content("validate#evaluator").state.metrics["val_mean_dice"]
    assert (dice > 0.01) == (coarse == "keen")


def test_medicalnet_demo(run, cohort, one_test_scan, tmp_path):
    """The published code's pre-processing, head and optimiser."""
    overlays = ("datasets/sample.json", "presets/medicalnet_demo.json")
    settings = {"image_size": [16, 32, 32], "roi_size": [16, 32, 32], "spacing": None}
    settings["datalist"] = str(one_test_scan / "structures4.json")
    workflow = trained(run, tmp_path, *overlays, **settings)
    backbone, new = workflow.parser.get_parsed_content("optimizer").param_groups
    assert new["lr"] == pytest.approx(100 * backbone["lr"])
    net = workflow.parser.get_parsed_content("network_def")
    assert len(backbone["params"]) + len(new["params"]) == len(list(net.parameters()))
    evaluated(run, tmp_path, *overlays, **settings)
    assert len(rows(tmp_path / "eval/val_mean_dice_raw.csv")) == 1
    predict(run, tmp_path, *overlays, **settings)
    check_masks(tmp_path / "predictions", cohort, one_test_scan / "structures4.json")


def test_a_label_outside_of_a_domains_classes(run, tmp_path):
    with pytest.raises(RuntimeError) as raised:
        run("pretrain.json", "datasets/sample.json", output_dir=str(tmp_path), **{"pretrain_datalist#1#num_classes": 2})
    text = str(first_cause(raised.value))
    assert "has labels that no class of the domain 'lesions' names (2" in text and "`num_classes`" in text


def test_deterministic_transforms_are_cached(run, tmp_path):
    """A nested composition would count as random, and the cache would end at it."""
    for name in ("train.json", "pretrain.json"):
        workflow = run(name, "datasets/sample.json", output_dir=str(tmp_path), execute=False, cache="none")
        transforms = workflow.parser.get_parsed_content("train#preprocessing")
        first = transforms.get_index_of_first(lambda step: hasattr(step, "R"))
        after = [type(step).__name__ for step in transforms.transforms[first:]]
        assert after == ["RandCropByPosNegLabeld", "DeleteItemsd"]


def test_drawn_heads_are_mirrored_and_exchange_their_sides():
    """As the published generator does by default. Left and right labels stay on their side of the head."""
    names = label_names("structures33")
    left, right = (number for number, name in names.items() if name.endswith("Hippocampus"))
    assert names[left].startswith("Left")
    parser = ConfigParser()
    files = ("pretrain.json", "datasets/sample.json", "datasets/synthetic.json")
    parser.read_config([str(CONFIGS / name) for name in files])
    transform = parser.get_parsed_content("synthetic_images")
    transform.deformation.scaling = transform.deformation.rotation = transform.deformation.shearing = 0
    transform.deformation.velocity = 0
    label = torch.zeros(1, 12, 8, 8)
    label[:, 1:3, 1:4], label[:, 7:11, 2:7], label[:, 5, 5] = left, right, 34  # RAS: the left side comes first
    mirrored = label.flip(1)
    mirrored[:, 1:5, 2:7], mirrored[:, 9:11, 1:4] = left, right
    transform.set_random_state(0)
    item = {"image": torch.rand(1, 12, 8, 8), "label": label, "domain": "synthetic"}
    made = [transform(item)["label"] for _ in range(10)]
    kept = sum(torch.equal(one, label) for one in made)
    assert 0 < kept < 10 and sum(torch.equal(one, mirrored) for one in made) == 10 - kept


def test_synthetic_images_are_a_domain_of_their_own(run, tmp_path):
    """Drawn anew each time from label maps of the sample; validation sees the same ones, and scans stay as they are."""
    files = ("pretrain.json", "datasets/sample.json", "datasets/synthetic.json")
    settings = {"synthetic_spacing": [4.0] * 3, "batches_per_epoch": 3, "cache": "memory", "output_dir": str(tmp_path)}
    workflow = run(*files, **settings)
    _, record = read_encoder(tmp_path / "encoder.safetensors")
    assert list(record["preparation"]["spacing"]) == ["heads", "lesions", "synthetic"]
    assert [Path(path).name for path in record["data"]] == ["skull.json", "lesion.json", "anatomy.json"]
    parser = workflow.parser
    assert parser.get_parsed_content("branch_classes") == [2, 4, 36]  # 33 structures, skull and scalp
    for part, fixed in (("train", False), ("validate", True)):
        dataset = parser.get_parsed_content(f"{part}#dataset")
        numbers = {item["domain"]: number for number, item in reversed(list(enumerate(dataset.data)))}
        drawn, scan = numbers["synthetic"], numbers["heads"]
        made = [dataset[drawn] for _ in range(2)]
        made = [item[0] if isinstance(item, list) else item for item in made]
        assert not torch.equal(made[0]["image"], made[1]["image"])
        for item in made:
            assert item["image"].shape == item["label"].shape and len(item["label"].unique()) > 5
            assert abs(item["image"].mean()) < 3 and 0.3 < item["image"].std() < 3  # as scans, not in 0..1
        if fixed:
            assert torch.equal(dataset[scan]["image"], dataset[scan]["image"])
            seeds = [h for h in parser.get_parsed_content("validate#handlers") if type(h).__name__ == "EpochSeed"]
            assert [seed.fixed for seed in seeds] == [True]
