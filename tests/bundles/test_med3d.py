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

from common.checks import first_cause
from common.weights import read_encoder

CONFIGS = Path(__file__).resolve().parents[2] / "bundles" / "med3d" / "configs"
SAMPLE = {"spacing": [4.0] * 3, "image_size": [32] * 3, "roi_size": [32] * 3, "batches_per_epoch": 1, "max_epochs": 1}
DOMAINS = {f"domains#{number}#spacing": [4.0] * 3 for number in (0, 1)} | {"batches_per_epoch": 2}


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


def test_pretraining(encoder):
    state, record = read_encoder(encoder / "encoder.safetensors")
    assert record["method"] == "MultiBranchNet" and record["architecture"]["name"] == "DilatedResNet"
    assert record["domain_spacings"] == {"heads": [4, 4, 4], "lesions": [4, 4, 4]}
    assert record["intensity"].startswith("percentiles 0.5 to 99.5")
    assert {Path(path).name for path in record["data"]} == {"skull.json", "lesion.json"}
    assert state["conv1.weight"].shape == (16, 1, 7, 7, 7)


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

    run("pretrain.json", "datasets/sample.json", output_dir=str(tmp_path), batches_per_epoch=6, before=note)
    assert {branch for branch, _ in seen} == {0, 1} and len(seen) == 6
    for (_, before), (branch, after) in itertools.pairwise(seen):
        assert not torch.equal(before[branch], after[branch])
        assert torch.equal(before[1 - branch], after[1 - branch])


def test_the_encoder_goes_into_every_transfer(run, encoder, tmp_path, caplog):
    path = encoder / "encoder.safetensors"
    state, _ = read_encoder(path)
    for task in ("lung", "nodule", "liver_coarse", "liver_fine"):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            workflow = run(
                "train.json",
                "datasets/sample.json",
                f"tasks/{task}.json",
                output_dir=str(tmp_path),
                pretrained_encoder=str(path),
                execute=False,
                data={"training": [{}], "validation": [{}], "test": []},
            )
        report = caplog.text[caplog.text.index("transfer report") :]
        assert "100.0%" in report and "warning" not in report.lower()
        own = workflow.parser.get_parsed_content("segmentation_net").encoder.state_dict()
        assert all(torch.equal(own[name], tensor) for name, tensor in state.items())


def test_a_resumed_pretraining_has_the_bits_of_one_that_was_not_killed(run, tmp_path):
    """The sampler's order, too, goes on where it was."""
    overlays = ("pretrain.json", "datasets/sample.json")
    settings = {"batches_per_epoch": 3, "max_epochs": 2, "val_interval": 1, "segmentation_net#width": 4}

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


def trained(run, folder, *overlays, network="model.pt", **settings):
    """Trained two epochs, evaluated on the test list."""
    place = settings | {"output_dir": str(folder)}
    run("train.json", *overlays, **place | {"max_epochs": 2, "val_interval": 1, "batches_per_epoch": 2})
    run("train.json", "evaluate.json", *overlays, **place)


def predict(run, folder, *overlays, **settings):
    given = {"output_dir": str(folder / "predictions"), "model_path": str(folder / "model.pt")} | settings
    left_out = dict.fromkeys(("batches_per_epoch", "max_epochs"))
    run_settings = {key: value for key, value in (SAMPLE | given).items() if key not in left_out}
    run("inference.json", *overlays, workflow_type="inference", **run_settings)


def test_segmentation(run, cohort, tmp_path):
    overlays = ("datasets/sample.json",)
    trained(run, tmp_path, *overlays)
    test = json.loads((cohort / "structures4.json").read_text())["test"]
    table = rows(tmp_path / "eval/val_mean_dice_raw.csv")
    assert len(table) == len(test) == 2 and "cortex" in table[0]
    predict(run, tmp_path, *overlays)
    for item in test:
        image = nib.load(cohort / item["image"])
        name = Path(item["image"]).name.removesuffix(".nii.gz")
        prediction = nib.load(next((tmp_path / "predictions").rglob(f"{name}_seg.nii.gz")))
        assert prediction.shape == image.shape and abs(prediction.affine - image.affine).max() < 1e-4
        assert set(prediction.get_fdata().astype(int).ravel()) <= set(range(5))


@pytest.mark.parametrize("task", ["age_group", "lesion_size"])
def test_classification(run, cohort, tmp_path, task):
    lesions = task == "lesion_size"
    overlays = ["datasets/sample.json", *(["datasets/sample_lesions.json"] if lesions else [])]
    overlays += ["tasks/nodule.json", f"tasks/{task}.json"]
    own = {"large_lesion": 10.0} if lesions else {}
    trained(run, tmp_path, *overlays, **own)
    lines = (tmp_path / "eval/metrics.csv").read_text().splitlines()
    metrics = {name: float(value) for name, value in (re.split(r"\s*[\t,]\s*", line) for line in lines)}
    table = rows(tmp_path / "eval/predictions.csv")
    assert metrics["val_accuracy"] == np.mean([row["label"] == row["prediction"] for row in table])
    predict(run, tmp_path, *overlays)
    predicted = rows(tmp_path / "predictions/predictions.csv")
    assert len(predicted) == 2
    for row in predicted:
        probabilities = [float(row[f"probability_{number}"]) for number in range(2 if lesions else 3)]
        assert sum(probabilities) == pytest.approx(1, abs=1e-4)
        assert int(row["prediction"]) == np.argmax(probabilities)


def test_malignancy_of_lidc():
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / "train.json"), str(CONFIGS / "tasks/nodule.json")])
    (transform,) = parser.get_parsed_content("label_transforms")
    assert [transform({"label": rating})["label"] for rating in range(1, 6)] == [0, 0, 0, 1, 1]


@pytest.fixture(scope="module")
def liver(run, cohort, tmp_path_factory):
    """Both stages, trained a little on the sample's lesions in place of livers."""
    folder = tmp_path_factory.mktemp("liver")
    organ = {
        "datalist": str(cohort / "skull.json"),
        "numbering": "binary",
        "task": "skull",
        "segmentation_net#width": 4,
        "learning_rate": 0.01,
    }
    head = {"head#hidden": 8, "head#growth": 4}
    trained(run, folder / "coarse", "datasets/sample.json", "tasks/liver_coarse.json", **organ)
    trained(run, folder / "fine", "datasets/sample.json", "tasks/liver_fine.json", **organ, **head, margin=2)
    return folder, organ, head


def test_two_stages(run, liver, cohort, caplog):
    folder, organ, head = liver
    overlays = ("datasets/sample.json", "tasks/liver_fine.json", "tasks/liver_two_stage.json")
    stages = {
        "coarse_model_path": str(folder / "coarse/model.pt"),
        "coarse_net#width": 4,
        "coarse_net#depth": 10,
        "coarse_size": [32] * 3,
        "margin": 2,
    }
    own = {key: organ[key] for key in ("datalist", "segmentation_net#width")}
    files = ("train.json", "evaluate.json", *overlays)
    run(*files, output_dir=str(folder / "fine"), eval_dir=str(folder / "both"), **organ, **head, **stages)
    assert len(rows(folder / "both/val_mean_dice_raw.csv")) == 2
    predict(run, folder / "fine", *overlays, **own, **head, **stages)
    item = json.loads((cohort / "skull.json").read_text())["test"][0]
    image = nib.load(cohort / item["image"])
    name = Path(item["image"]).name.removesuffix(".nii.gz")
    prediction = nib.load(next((folder / "fine/predictions").rglob(f"{name}_seg.nii.gz")))
    assert prediction.shape == image.shape and abs(prediction.affine - image.affine).max() < 1e-4

    # A first stage that calls everything background.
    state = torch.load(folder / "coarse/model.pt", weights_only=True)
    state["head.branches.0.bias"].copy_(torch.tensor([1e4, -1e4]))
    torch.save(state, folder / "blind.pt")
    caplog.clear()
    stages["coarse_model_path"] = str(folder / "blind.pt")
    predict(run, folder / "fine", *overlays, **own, **head, **stages, output_dir=str(folder / "blind"))
    assert caplog.text.count("the first stage finds nothing") == 2 and name in caplog.text
    empty = nib.load(next((folder / "blind").rglob(f"{name}_seg.nii.gz")))
    assert empty.shape == image.shape and not empty.get_fdata().any()


def test_medicalnet_demo(run, tmp_path):
    """The published code's pre-processing, head and optimiser."""
    overlays = ("datasets/sample.json", "presets/medicalnet_demo.json")
    settings = {"image_size": [16, 32, 32], "roi_size": [16, 32, 32], "spacing": None}
    trained(run, tmp_path, *overlays, **settings)
    assert len(rows(tmp_path / "eval/val_mean_dice_raw.csv")) == 2
    predict(run, tmp_path, *overlays, **settings)
    workflow = run("train.json", *overlays, output_dir=str(tmp_path), execute=False, **settings)
    backbone, new = workflow.parser.get_parsed_content("optimizer").param_groups
    assert new["lr"] == pytest.approx(100 * backbone["lr"])
    net = workflow.parser.get_parsed_content("network_def")
    assert len(backbone["params"]) + len(new["params"]) == len(list(net.parameters()))


def test_a_label_outside_of_a_domains_classes(run, tmp_path):
    with pytest.raises(RuntimeError) as raised:
        run("pretrain.json", "datasets/sample.json", output_dir=str(tmp_path), **{"domains#1#num_classes": 2})
    text = str(first_cause(raised.value))
    assert "has labels that no class of the domain 'lesions' names (2" in text and "`num_classes`" in text


def test_deterministic_transforms_are_cached(run, tmp_path):
    """A nested composition would count as random, and the cache would end at it."""
    for name in ("train.json", "pretrain.json"):
        workflow = run(name, "datasets/sample.json", output_dir=str(tmp_path), execute=False, cache_rate=0.0)
        transforms = workflow.parser.get_parsed_content("train#preprocessing")
        first = transforms.get_index_of_first(lambda step: hasattr(step, "R"))
        after = [type(step).__name__ for step in transforms.transforms[first:]]
        assert after == ["RandCropByPosNegLabeld", "DeleteItemsd", *["SpatialPadd"] * 2 * (name == "pretrain.json")]


def test_monai_verifies_and_exports_the_net(tmp_path, verify_and_export):
    overlay = tmp_path / "small.json"
    overlay.write_text(json.dumps({"roi_size": [32] * 3, "head#features": 16}))
    files = [str(CONFIGS / "inference.json"), str(CONFIGS / "networks/resnet10_small.json"), str(overlay)]
    verify_and_export(CONFIGS, files, image=[1, 1, 32, 32, 32], pred=[32, 32, 32])
