"""The bundle `medical_transformer`: two stages of pre-training, the tasks, and what they write, tiny."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ckpt_export

from common.checks import first_cause
from common.compare.bundle_config import BundleConfig
from common.compare.plan import make_plan
from common.compare.settings import read_settings
from common.weights import read_encoder, shipped

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "medical_transformer"
SAMPLE = "datasets/sample.json"
TINY = {
    "max_epochs": 2,
    "val_interval": 1,
    # The paper's layers, thin, so that the runs take seconds.
    "encoder": {
        "_target_": "common.networks.MultiViewEncoder",
        "in_channels": "@in_channels",
        "embed_dim": 16,
        "widths": [4, 4, 8, 8],
        "num_heads": 2,
        "dim_head": 8,
        "mlp_dim": 16,
    },
}
INFERENCE = {key: TINY[key] for key in ("encoder",)}


@pytest.fixture(scope="module")
def run(run_bundle):
    def run(*files, **overrides):
        settings = INFERENCE if files[0] == "inference.json" else TINY
        return run_bundle(*files, SAMPLE, bundle="medical_transformer", **(settings | overrides))

    return run


@pytest.fixture(scope="module")
def pretrained(run, tmp_path_factory):
    """Stage 1 and, from its file, stage 2; the folder of both."""
    folder = tmp_path_factory.mktemp("medical_transformer")
    run("pretrain.json", output_dir=str(folder))
    workflow = run(
        "pretrain.json",
        "pretrain_transformer.json",
        pretrained_encoder=str(folder / "encoder.safetensors"),
        output_dir=str(folder / "transformer"),
    )
    return folder, workflow


@pytest.mark.way("run", bundle="medical_transformer")
def test_stage_2_trains_the_transformer_only(pretrained):
    folder, workflow = pretrained
    (first, record1), (second, record2) = (
        read_encoder(folder / name) for name in ("encoder.safetensors", "transformer/encoder.safetensors")
    )
    changed = {name for name in first if not torch.equal(first[name], second[name])}
    assert changed and all(name.startswith("transformer.") for name in changed)
    assert (record1["method"], record2["method"]) == ("PlaneExemplar", "MaskedEncodingVectors")
    assert record2["architecture"]["embed_dim"] == 16 and record2["preparation"]["spacing"] == [4.0, 4.0, 4.0]
    dataset = workflow.parser.get_parsed_content("train#dataset")
    assert dataset[0]["image"].shape == (40 + 48 + 40, 16)


def test_stage_2_without_stage_1_says_what_is_missing(run, tmp_path):
    with pytest.raises(RuntimeError) as refused:
        run(
            "pretrain.json",
            "pretrain_transformer.json",
            output_dir=str(tmp_path),
            pretrained_encoder=str(tmp_path / "encoder.safetensors"),
        )
    assert "no encoder file" in str(first_cause(refused.value))


def test_representations_are_watched_in_stage_1_only(run, tmp_path):
    for files, watched in ((["pretrain.json"], True), (["pretrain.json", "pretrain_transformer.json"], False)):
        workflow = run(*files, output_dir=str(tmp_path), pretrained_encoder=None, execute=False)
        handlers = workflow.parser.get_parsed_content("train#handlers")
        assert ("RepresentationMonitor" in [type(handler).__name__ for handler in handlers]) == watched


def test_stage_2_refuses_plane_encoders_of_other_sizes(run, pretrained, tmp_path):
    """paper_dims.json in one stage only; else the last layers of the frozen encoders would stay random."""
    with pytest.raises(RuntimeError) as refused:
        run(
            "pretrain.json",
            "pretrain_transformer.json",
            output_dir=str(tmp_path),
            pretrained_encoder=str(pretrained[0] / "encoder.safetensors"),
            execute=False,
            encoder=TINY["encoder"] | {"embed_dim": 20},
        )
    assert "planes.sagittal.project.weight" in str(first_cause(refused.value))


def test_stage_1_logs_each_plane(pretrained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(pretrained[0] / "tensorboard"))
    events.Reload()
    planes = {f"val_loss_{plane}" for plane in ("sagittal", "coronal", "axial")}
    assert planes <= set(events.Tags()["scalars"])
    means = [sum(events.Scalars(tag)[n].value for tag in planes) / 3 for n in range(2)]
    assert means == pytest.approx([event.value for event in events.Scalars("val_loss")], abs=1e-5)


@pytest.fixture(scope="module")
def tuned(run, pretrained, cohort, tmp_path_factory):
    """Folder of a task's fine-tuning, evaluation and inference, each run once."""
    folders: dict[str, Path] = {}

    def tune(task):
        if task in folders:
            return folders[task]
        folders[task] = folder = tmp_path_factory.mktemp(task)
        overlays = [] if task == "tumour" else [f"tasks/{task}.json"]
        encoder = str(pretrained[0] / "transformer/encoder.safetensors")
        run("train.json", *overlays, pretrained_encoder=encoder, output_dir=str(folder))
        run("train.json", "evaluate.json", *overlays, output_dir=str(folder))
        images = cohort / ("lesion_image" if task == "tumour" else "t1_brain")
        run(
            "inference.json",
            *overlays,
            workflow_type="inference",
            model_path=str(folder / "model.pt"),
            dataset_dir=str(images),
            datalist=str(images),
            output_dir=str(folder / "inference"),
        )
        return folder

    return tune


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file, skipinitialspace=True))


@pytest.mark.way("run", bundle="medical_transformer")
def test_age(tuned, cohort, event_images):
    folder = tuned("age")
    assert not event_images(folder / "tensorboard")
    truth = {
        Path(item["image"]).name: item["age"] for item in json.loads((cohort / "structures4.json").read_text())["test"]
    }
    table = rows(folder / "eval/predictions.csv")
    assert {Path(row["filename"]).name: float(row["label"]) for row in table} == pytest.approx(truth)
    errors = [abs(float(row["label"]) - float(row["prediction"])) for row in table]
    measured = dict(line.split(",") for line in (folder / "eval/metrics.csv").read_text().split())
    assert float(measured["val_mae"]) == pytest.approx(np.mean(errors), rel=1e-4)
    assert "val_calibration_slope" in measured
    assert [float(row["mean"]) for row in rows(folder / "eval/val_mae_raw.csv")] == pytest.approx(errors, rel=1e-3)
    # The training ages' mean and deviation travel with the net.
    ages = [item["age"] for item in json.loads((cohort / "structures4.json").read_text())["training"]]
    state = torch.load(folder / "model.pt", weights_only=True)
    assert (float(state["mean"]), float(state["std"])) == pytest.approx((np.mean(ages), np.std(ages)), rel=1e-5)
    found = {Path(row["filename"]).name: row for row in rows(folder / "inference/predictions.csv")}
    for row in table:  # the same net on the same scan
        again = found[Path(row["filename"]).name]
        assert again["label"] == "" and float(again["prediction"]) == pytest.approx(float(row["prediction"]), abs=0.05)


def test_diagnosis(tuned):
    folder = tuned("diagnosis")
    table = rows(folder / "eval/predictions.csv")
    assert {row["label"] for row in table} <= {"0", "1"} and len(table) == 2
    for row in table:
        chances = [float(row[f"probability_{number}"]) for number in range(3)]
        assert sum(chances) == pytest.approx(1, abs=1e-4) and chances.index(max(chances)) == int(row["prediction"])
    measured = dict(line.split(",") for line in (folder / "eval/metrics.csv").read_text().split())
    assert set(measured) == {"val_auc", "val_accuracy"}
    assert len(rows(folder / "inference/predictions.csv")) == 7


@pytest.mark.way("run", bundle="medical_transformer")
def test_tumour(tuned, cohort, event_images, caplog):
    folder = tuned("tumour")
    assert list(event_images(folder / "tensorboard")["validation/0"]) == [1, 2]
    table = rows(folder / "eval/val_mean_dice_raw.csv")
    assert list(table[0]) == ["filename", "enhancing tumour", "tumour core", "whole tumour", "mean"]
    assert not (folder / "eval/predictions.csv").exists()
    images = sorted((cohort / "lesion_image").glob("*.nii.gz"))
    for image in images:
        source, mask = nib.load(image), nib.load(folder / f"inference/{image.name.removesuffix('.nii.gz')}_seg.nii.gz")
        assert mask.shape == source.shape[:3] and np.allclose(mask.affine, source.affine)
        assert set(np.unique(np.asarray(mask.dataobj))) <= {0, 1, 2, 3}


def test_four_contrasts_take_the_first_layer_of_one(run, pretrained, tmp_path, caplog):
    encoder = pretrained[0] / "transformer/encoder.safetensors"
    with caplog.at_level(logging.INFO):
        workflow = run("train.json", pretrained_encoder=str(encoder), output_dir=str(tmp_path), execute=False)
    name = "planes.axial.stem.weight"
    ours, theirs = workflow.parser.get_parsed_content("encoder").state_dict()[name], read_encoder(encoder)[0][name]
    torch.testing.assert_close(ours, theirs.expand(-1, 4, -1, -1) / 4)
    assert "1 input channels to 4" in caplog.text and "newly initialised     0" in caplog.text


def test_pooled_masks_are_on_the_images_grid(run, tmp_path):
    workflow = run("train.json", "tasks/structures4.json", output_dir=str(tmp_path), cache="none", execute=False)
    item = workflow.parser.get_parsed_content("train#dataset")[0]
    assert item["image"].shape == item["label"].shape == (1, 40, 48, 40)
    torch.testing.assert_close(item["image"].affine, item["label"].affine)
    assert set(item["label"].unique().tolist()) - {-1} == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    ("task", "key", "text"),
    [("age", "age", "has no 'age'"), ("diagnosis", "diagnosis", "has no 'diagnosis'")],
)
def test_scans_without_the_number_are_one_error(run, cohort, tmp_path, task, key, text):
    content = json.loads((cohort / "structures4.json").read_text())
    del content["training"][1][key], content["test"][0][key]
    path = tmp_path / "list.json"
    path.write_text(json.dumps(content))
    with pytest.raises(RuntimeError) as refused:
        run("train.json", f"tasks/{task}.json", datalist=str(path), output_dir=str(tmp_path))
    sentence = str(first_cause(refused.value))
    assert sentence.count(text) == 2 and "training[1]" in sentence and "test[0]" in sentence


def test_diagnoses_out_of_range_are_one_error(run, cohort, tmp_path):
    content = json.loads((cohort / "structures4.json").read_text())
    content["training"][1]["diagnosis"], content["test"][0]["diagnosis"] = 3, 7
    path = tmp_path / "list.json"
    path.write_text(json.dumps(content))
    with pytest.raises(RuntimeError) as refused:
        run("train.json", "tasks/diagnosis.json", datalist=str(path), dataset_dir=str(cohort), output_dir=str(tmp_path))
    sentence = str(first_cause(refused.value))
    assert "its label 3 is not a whole number from 0 to 2" in sentence and "its label 7" in sentence


@pytest.mark.parametrize(
    ("count", "sentence"),
    [
        (0, "the list 'validation' is empty; set `fold`"),
        (1, "the validation list has 1 volumes, too few for a batch of 2 different ones, which are compared"),
    ],
)
def test_one_volume_is_too_few_for_the_triplet(run, cohort, pretrained, tmp_path, count, sentence):
    content = json.loads((cohort / "unlabelled.json").read_text())
    content["validation"] = content["validation"][:count]
    path = tmp_path / "list.json"
    path.write_text(json.dumps(content))
    with pytest.raises(RuntimeError) as refused:
        run("pretrain.json", pretrain_datalist=str(path), output_dir=str(tmp_path))
    assert sentence in str(first_cause(refused.value))
    if count:  # stage 2 does not compare volumes
        overrides = {"pretrained_encoder": str(pretrained[0] / "encoder.safetensors"), "max_epochs": 1}
        workflow = run(
            "pretrain.json", "pretrain_transformer.json", pretrain_datalist=str(path), output_dir=str(tmp_path),
            **overrides,
        )  # fmt: skip
        assert len(workflow.parser.get_parsed_content("validate#dataloader")) == 1


def test_five_folds_test_every_scan_once(run, cohort, tmp_path):
    tested = []
    for fold in range(3):
        workflow = run(
            "train.json",
            "tasks/age.json",
            fold=fold,
            pool_test=True,
            output_dir=str(tmp_path),
            execute=False,
            **{"data#num_folds": 3},
        )
        data = workflow.parser.get_parsed_content("data")
        assert [len(data[name]) for name in ("training", "validation", "test")] == [2, 2, 2]
        tested += [item["image"] for item in data["test"]]
    assert len(set(tested)) == len(tested) == 6


def test_pretraining_leaves_out_what_a_fold_tests(run, cohort, tmp_path):
    datalist = str(cohort / "structures4.json")
    folds = {"fold": 1, "pool_test": True, "data#num_folds": 3, "output_dir": str(tmp_path), "execute": False}
    tuned, other = (
        run("train.json", "tasks/age.json", seed=seed, **folds).parser.get_parsed_content("data") for seed in (0, 1)
    )
    stages = [("pretrain.json",), ("pretrain.json", "pretrain_transformer.json")]
    for files in stages:
        overrides = {"pretrain_datalist": datalist, "pretrained_encoder": None}
        data = run(*files, seed=1, **overrides, **folds).parser.get_parsed_content("data")
        for section in ("training", "validation", "test"):
            images = [item["image"] for item in data[section]]
            assert images == [item["image"] for item in tuned[section]] == [item["image"] for item in other[section]]


def test_training_stops_early(run, tmp_path, caplog):
    """With a learning rate of 0 the first validation stays the best."""
    with caplog.at_level(logging.INFO):
        workflow = run(
            "train.json", "tasks/age.json", learning_rate=0.0, max_epochs=9, patience=2, output_dir=str(tmp_path)
        )
    assert workflow.parser.get_parsed_content("train#trainer").state.epoch == 3
    assert "stopped after epoch 3: no better validation since epoch 1 (patience 2)" in caplog.text


def test_the_net_of_ages_exports(run, tuned, tmp_path):
    """With the mean and deviation of the training ages; test_exports.py has the segmenter."""
    image = torch.rand(1, 1, 40, 48, 40)
    ckpt_export(
        net_id="network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(tuned("age") / "model.pt"),
        meta_file=str(BUNDLE / "configs/metadata.json"),
        config_file=[str(BUNDLE / "configs" / name) for name in ("inference.json", "tasks/age.json", SAMPLE)],
        use_trace=True,
        input_shape=list(image.shape),
        **INFERENCE,
    )
    workflow = run("inference.json", "tasks/age.json", workflow_type="inference", execute=False)
    network = workflow.parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(tuned("age") / "model.pt", weights_only=True))
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(tmp_path / "model.ts")(image), network(image), rtol=1e-3, atol=1e-3)


def test_settings_isolate_the_stages_of_pretraining(cohort, tmp_path):
    """Stage 1 alone, stage 2 on planes as drawn, both, and table 5's arm without transformer, pre-trained too."""
    settings = BUNDLE / "compare_ixi_age_stages.json"
    here = {
        "output": str(tmp_path),
        "config_file": "tasks/age.json,datasets/sample.json",
        "override": {"batch_size": 2},
        "seeds": "0,1",
        "fractions": 1.0,
    }
    plan = make_plan(read_settings(str(settings), **here, tune=False))
    pretraining = {(run.arm, run.seed): run for run in plan.runs if run.stage == "pretrain"}
    methods = ["exemplar", "exemplar_hardest", "exemplar_probe", "exemplar_weak_maps"]
    methods += ["transformer_alone", "medical_transformer"]
    assert {arm for arm, _ in pretraining} == {*methods, "without_transformer"}
    assert {seed for _, seed in pretraining} == {0, 1}
    config = {arm: BundleConfig(run.files, run.override, BUNDLE) for (arm, seed), run in pretraining.items() if seed}
    stage_2 = {arm for arm in config if type(config[arm].get("pretext")).__name__ == "MaskedEncodingVectors"}
    assert stage_2 == {"transformer_alone", "medical_transformer"}
    assert config["transformer_alone"].get("pretrained_encoder") is None
    first = Path(config["medical_transformer"].get("pretrained_encoder"))
    assert first.parent == pretraining["exemplar", 1].folder
    assert "val_probe_error" in config["exemplar_probe"].parser["validate#key_metric"]
    assert config["exemplar_hardest"].get("pretext_loss").negative == "hardest"
    assert config["exemplar_weak_maps"].get("pretext").intensity.strength == 0.3
    tuned = {run.arm: run for run in plan.runs if run.stage == "train"}
    for arm, layers in (("without_transformer", 0), ("scratch_without_transformer", 0), ("medical_transformer", 1)):
        encoder = BundleConfig(tuned[arm].files, tuned[arm].override, BUNDLE).get("encoder")
        assert (0 if encoder.transformer is None else len(encoder.transformer.layers)) == layers
    assert config["without_transformer"].get("encoder").transformer is None


@pytest.mark.parametrize("name", ["adni_diagnosis", "adni_age", "brats"])
def test_settings_of_the_papers_tables(name, tmp_path, monkeypatch):
    """Tables 1, 4 and 5: five folds, shares of the labels, 150 epochs, and both arms of table 5 pre-trained."""
    files = {"i3d_kinetics": "i3d_kinetics.safetensors", "medicalnet_pretrained": "resnet18_medicalnet.safetensors"}
    monkeypatch.setattr(shipped, "find_encoder", Path)  # as if a user had converted them
    settings = read_settings(str(BUNDLE / f"compare_{name}.json"), output=str(tmp_path))
    assert {arm.name: Path(arm.encoder).name for arm in settings.arms if arm.encoder} == (
        files if name != "brats" else {}
    )
    assert all(arm.is_reference for arm in settings.arms if arm.encoder)
    arms = {arm.name: arm for arm in settings.arms}
    assert settings.folds == 5 and settings.fractions == (0.1, 0.3, 0.5, 0.7, 1.0)
    assert (settings.epochs, settings.patience) == (150, 30)
    assert arms["without_transformer"].pretrain and arms["without_transformer"].override == {"encoder#num_layers": 0}
    assert arms["medical_transformer"].pretrain_from == "exemplar"


def test_settings_of_ixi_are_as_long_for_masks_as_for_ages():
    """And the command of the page that repeats a shorter measurement says its own length."""
    ages, masks = (json.loads((BUNDLE / f"compare_ixi_{name}.json").read_text()) for name in ("age", "structures"))
    for key in ("steps", "patience", "validations"):
        assert masks[key] == ages[key], key
    for arm in ("exemplar", "medical_transformer"):
        assert masks["arms"][arm] == ages["arms"][arm]
    page = (BUNDLE / "docs" / "README.md").read_text().replace("\\\n", "")
    commands = [line for line in page.splitlines() if "--settings compare_ixi_structures.json" in line]
    assert ["--steps 150" in line and "patience=null" in line for line in commands] == [True, False]


@pytest.mark.parametrize(
    ("network", "thin"),
    [
        ("i3d", {"encoder#width": 0.05}),
        ("medicalnet", {"encoder#width": 4, "encoder#depth": 10}),
        ("densenet121", {"encoder#network#init_features": 8, "encoder#network#growth_rate": 2}),
    ],
)
def test_comparators_tell_age(run_bundle, tmp_path, network, thin):
    """Rows of table 1, and a stock net: the comparator's encoder, pooled, in the same training and evaluation."""
    given = {"bundle": "medical_transformer", "max_epochs": 1, "output_dir": str(tmp_path), **thin}
    overlays = (SAMPLE, "tasks/age.json", f"comparators/{network}_age.json")
    run_bundle("train.json", *overlays, **given)
    run_bundle("train.json", "evaluate.json", *overlays, **given)
    predicted = [float(row["prediction"]) for row in csv.DictReader((tmp_path / "eval/predictions.csv").open())]
    assert predicted and all(0 < age < 150 for age in predicted)


def test_a_probe_may_choose_the_encoder(run, cohort, tmp_path, monkeypatch):
    """In both stages: the file is that of the epoch with the least error of the probe, whatever the loss."""
    listed = json.loads((cohort / "unlabelled.json").read_text())
    four = (listed["validation"] * 4)[:4]
    listed["validation"] = [item | {"age": 20.0 + 10 * n, "subject": str(n)} for n, item in enumerate(four)]
    datalist = tmp_path / "probed.json"
    datalist.write_text(json.dumps(listed))
    errors = iter([3.0, 1.0, 2.0, 1.0, 3.0, 2.0])
    monkeypatch.setattr("common.metrics.EncoderProbe.compute", lambda probe: len(probe._found) and next(errors))
    given = {"pretrain_datalist": str(datalist), "max_epochs": 3, "dataset_dir": str(cohort)}
    run("pretrain.json", "presets/probe.json", output_dir=str(tmp_path), **given)
    _, record = read_encoder(tmp_path / "encoder.safetensors")
    assert (record["epochs"], record["val_probe_error"]) == (2, 1.0)
    stages = ("pretrain.json", "pretrain_transformer.json", "presets/probe.json")
    workflow = run(
        *stages, pretrained_encoder=str(tmp_path / "encoder.safetensors"), output_dir=str(tmp_path / "second"), **given
    )
    _, record = read_encoder(tmp_path / "second/encoder.safetensors")
    assert (record["epochs"], record["val_probe_error"]) == (1, 1.0)
    probe = workflow.parser.get_parsed_content("validate#key_metric")["val_probe_error"]
    assert sum(len(truth) for truth in probe._truth) == 4 and all(found.shape[1] == 48 for found in probe._found)
