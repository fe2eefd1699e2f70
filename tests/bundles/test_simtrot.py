"""The bundle `simtrot`: every network with every pretext and the fine-tuning that follows, tiny."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path

import nibabel as nib
import pytest
import torch
from monai.transforms import Compose

from common.checks import first_cause
from common.weights import read_encoder

CONFIGS = Path(__file__).resolve().parents[2] / "bundles" / "simtrot" / "configs"
PRETEXTS = tuple(sorted(path.stem for path in (CONFIGS / "pretexts").glob("*.json")))
SAMPLE = {
    "spacing": [4.0, 4.0, 4.0],
    "image_size": [64, 64, 64],
    "batch_size": 2,
    "batches_per_epoch": 1,
    "max_epochs": 1,
}


@pytest.fixture
def run(run_bundle):
    def run(*files, **overrides):
        return run_bundle(*files, bundle="simtrot", **(SAMPLE | overrides))

    return run


# Thin layers, and for Swin UNETR, which cannot train on fewer than 64 voxels per axis, small windows save time.
THIN = {"segmentation_net#embed_dim": 24}
SMALLER = {"nnformer": THIN, "swin_unetr": {"segmentation_net#window_size": 4}, "unetr": {}}
# Each pretext once, and each network with several kinds of them.
TRAINED = [
    ("nnformer", "simtrot"),
    ("nnformer", "btrot"),
    ("swin_unetr", "rcr"),
    ("swin_unetr", "simmim"),
    ("unetr", "byol"),
    ("unetr", "mae"),
    ("unetr", "simclr"),
]
TRAINED += [("unetr", pretext) for pretext in PRETEXTS if pretext not in dict(map(reversed, TRAINED))]
# With those each network has each class of pretexts. SimTROT and SimCLR, and so B-TROT and BYOL, are of one class.
OTHERS = [
    ("nnformer", "rcr"),
    ("nnformer", "simmim"),
    ("swin_unetr", "simclr"),
    ("swin_unetr", "byol"),
    ("unetr", "rcr"),
    ("unetr", "simmim"),
]


def overlays_of(network: str) -> tuple[str, str]:
    return "datasets/sample.json", f"networks/{network}_small.json"


@pytest.mark.way("run", bundle="simtrot")
@pytest.mark.parametrize(("network", "pretext"), TRAINED)
def test_any_network_with_any_pretext(run, tmp_path, network, pretext, event_images, caplog):
    """One step, and the encoder goes into the matching fine-tuning net whole; the handler moves a teacher."""
    overlays, small = overlays_of(network), SMALLER[network]
    teacher = {}

    def note(workflow):
        net = workflow.parser.get_parsed_content("network_def")
        if hasattr(net, "teacher"):
            teacher.update({name: tensor.clone() for name, tensor in net.teacher.state_dict().items()})

    workflow = run(
        "pretrain.json",
        *overlays,
        f"pretexts/{pretext}.json",
        output_dir=str(tmp_path),
        learning_rate=0.1,
        before=note,
        **small,
    )
    trainer = workflow.parser.get_parsed_content("train#trainer")
    assert trainer.state.iteration == 1
    state, record = read_encoder(tmp_path / "encoder.safetensors")
    method = json.loads((CONFIGS / "pretexts" / f"{pretext}.json").read_text())["pretext"]["_target_"].split(".")[-1]
    assert record["method"] == method
    (step,) = record["preparation"]["intensity"]
    assert (step["transform"], step["lower"], step["upper"]) == ("ScaleForegroundPercentilesd", 1, 99)

    pictured = hasattr(workflow.parser.get_parsed_content("network_def"), "pictures")
    assert pictured or pretext not in ("mae", "rcr", "simmim")  # the others restore no image
    assert list(event_images(tmp_path / "tensorboard")) == ["validation/0"] * pictured

    with caplog.at_level(logging.INFO):
        tuned = run(
            "train.json",
            *overlays,
            output_dir=str(tmp_path),
            pretrained_encoder=str(tmp_path / "encoder.safetensors"),
            execute=False,
            **small,
        )
    encoder = tuned.parser.get_parsed_content("encoder")
    assert all(torch.equal(value.cpu(), state[name]) for name, value in encoder.state_dict().items())
    report = caplog.text[caplog.text.index("transfer report") :]
    assert "100.0%" in report.partition("adapted")[0] and "warning" not in report.lower()

    assert bool(teacher) == (method == "TokenBYOL")
    if teacher:
        net, name = workflow.parser.get_parsed_content("network_def"), "projector.3.weight"
        ours, theirs = (branch.state_dict()[name].cpu() for branch in (net.student, net.teacher))
        assert not torch.equal(teacher[name], theirs)
        torch.testing.assert_close(theirs, 0.99 * teacher[name] + 0.01 * ours)


@pytest.mark.parametrize(("network", "pretext"), OTHERS)
def test_other_networks_and_pretexts_fit(run, tmp_path, network, pretext):
    """A loss that is finite, and gradients in the encoder."""
    files = "pretrain.json", *overlays_of(network), f"pretexts/{pretext}.json"
    workflow = run(*files, output_dir=str(tmp_path), execute=False, **SMALLER[network])
    net, loss, encoder = (workflow.parser.get_parsed_content(name) for name in ("network_def", "loss", "encoder"))
    image = torch.rand(2, 1, 64, 64, 64, generator=torch.Generator().manual_seed(0))
    value = loss(net(image), image)
    assert torch.isfinite(value)
    value.backward()
    assert sum(float(p.grad.abs().sum()) for p in encoder.parameters() if p.grad is not None) > 0


@pytest.mark.parametrize("network", ["nnformer", "swin_unetr"])
def test_mae_takes_a_vit(run, tmp_path, network):
    with pytest.raises(RuntimeError) as refused:
        run("pretrain.json", *overlays_of(network), "pretexts/mae.json", output_dir=str(tmp_path), **SMALLER[network])
    assert "which only a ViT allows" in str(first_cause(refused.value))


def test_the_published_code_crops_by_labels_and_restores_as_it_does(run, tmp_path):
    """One step of two crops of one scan; half of the crops are centred on a structure, and no label goes further."""
    workflow = run(
        "pretrain.json",
        "datasets/sample.json",
        "pretexts/simtrot.json",
        "presets/official_code.json",
        output_dir=str(tmp_path),
        pretrain_datalist="$@dataset_dir + '/structures4.json'",
        **SAMPLE | {"batch_size": 1} | THIN,
    )
    parser = workflow.parser
    assert parser.get_parsed_content("train#trainer").state.iteration == 1
    crops = parser.get_parsed_content("train#dataset")[0]
    assert [(set(crop) >= {"image"}, "label" in crop, tuple(crop["image"].shape)) for crop in crops] == [
        (True, False, (1, 64, 64, 64))
    ] * 2
    pretext = parser.get_parsed_content("network_def")
    assert pretext.views.published_restore and not pretext.projector[0].weight.requires_grad

    label = torch.zeros(1, 96, 96, 96)
    label[0, 48, 48, 48] = 1
    crop = Compose(parser.get_parsed_content("train#crop_transforms")).set_random_state(0)
    centred = [
        item["image"][0, 32, 32, 32] == 2 for _ in range(30) for item in crop({"image": 1 + label, "label": label})
    ]
    assert 20 < sum(map(bool, centred)) < 40


@pytest.fixture(scope="module")
def tuned(run_bundle, cohort, tmp_path_factory):
    """Fine-tuned a little, evaluated, and applied to the test scans."""
    folder = tmp_path_factory.mktemp("simtrot")
    settings = SAMPLE | {"bundle": "simtrot", "max_epochs": 2, "val_interval": 1, "output_dir": str(folder)} | THIN
    run_bundle("train.json", "datasets/sample.json", **settings | {"batches_per_epoch": 4})
    run_bundle("train.json", "evaluate.json", "datasets/sample.json", **settings)
    del settings["max_epochs"], settings["val_interval"], settings["batches_per_epoch"]
    settings |= {"output_dir": str(folder / "predictions"), "model_path": str(folder / "model.pt")}
    run_bundle("inference.json", "datasets/sample.json", workflow_type="inference", **settings)
    return folder


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file, skipinitialspace=True))


@pytest.mark.way("run", bundle="simtrot")
def test_evaluation_has_a_row_a_subject(tuned, cohort, event_images):
    assert list(event_images(tuned / "tensorboard")["validation/0"]) == [1, 2]
    test = json.loads((cohort / "structures4.json").read_text())["test"]
    for metric in ("val_mean_dice", "val_hd95"):
        table = rows(tuned / f"eval/{metric}_raw.csv")
        assert len(table) == len(test) == 2
    dice = [float(row["mean"]) for row in rows(tuned / "eval/val_mean_dice_raw.csv")]
    assert all(0 < value <= 1 for value in dice)


@pytest.mark.way("run", bundle="simtrot")
def test_predictions_lie_on_the_scans_grids(tuned, cohort):
    for item in json.loads((cohort / "structures4.json").read_text())["test"]:
        image = nib.load(cohort / item["image"])
        path = next((tuned / "predictions").rglob(f"{Path(item['image']).name.removesuffix('.nii.gz')}_seg.nii.gz"))
        prediction = nib.load(path)
        assert prediction.shape == image.shape
        assert abs(prediction.affine - image.affine).max() < 1e-4
        assert set(prediction.get_fdata().astype(int).ravel()) <= set(range(5))


def test_a_single_label_trains(run, tmp_path):
    """Batches of two from one volume."""
    workflow = run(
        "train.json", "datasets/sample.json", output_dir=str(tmp_path), fraction=0.3, batches_per_epoch=2, **THIN
    )
    assert len(workflow.parser.get_parsed_content("data")["training"]) == 1
    assert workflow.parser.get_parsed_content("train#trainer").state.iteration == 2


def test_regions_of_the_tumour(run_bundle, tmp_path):
    """Overlay brats: the evaluation is of overlapping regions, background first, and four channels go in."""
    workflow = run_bundle(
        "train.json",
        "evaluate.json",
        "datasets/brats.json",
        "networks/nnformer_tumour.json",
        bundle="simtrot",
        execute=False,
        output_dir=str(tmp_path),
        data={"training": [{}], "validation": [], "test": []},
        segmentation_net={
            "_target_": "torch.nn.Conv3d",
            "in_channels": "@in_channels",
            "out_channels": 4,
            "kernel_size": 1,
        },
        encoder=None,
        initialize=[],
    )
    post = workflow.parser.get_parsed_content("validate#postprocessing")
    label = torch.tensor([0, 1, 2, 3]).view(1, 4, 1, 1).float()
    logits = torch.eye(4).view(4, 4, 1, 1)
    made = post({"pred": logits, "label": label})
    expected = torch.tensor([[1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 1], [0, 1, 1, 1]])
    assert torch.equal(made["label"].view(4, 4).long(), expected)
    assert torch.equal(made["pred"].view(4, 4).long(), expected)
    assert workflow.parser.get_parsed_content("structure_names") == {
        "1": "enhancing tumour",
        "2": "tumour core",
        "3": "whole tumour",
    }


@pytest.mark.parametrize("name", ["pretrain.json", "train.json"])
def test_the_sampler_goes_with_the_data_set(name):
    """Whoever shortens the data set, as the estimate of a comparison does, shortens what is drawn from it."""
    sampler = json.loads((CONFIGS / name).read_text())["train"]["sampler"]
    assert sampler["data"] == "@train#dataset#data"


def test_the_published_protocol_trains_on_all_scans_and_notes_that_the_test_scans_chose(run, cohort, tmp_path, caplog):
    """Without a validation list: pre-training makes do without, and fine-tuning validates on the test list."""
    content = json.loads((cohort / "structures4.json").read_text())
    content["training"] += content.pop("validation")
    (tmp_path / "all.json").write_text(json.dumps(content))
    lists = {"datalist": str(tmp_path / "all.json"), "output_dir": str(tmp_path)}
    files, protocol = ("datasets/sample.json", "networks/nnformer_tiny.json"), "presets/synapse_protocol.json"
    workflow = run("pretrain.json", *files, **lists, pretrain_datalist=lists["datalist"])
    assert len(workflow.parser.get_parsed_content("train#dataset")) == 4
    encoder = {"pretrained_encoder": str(tmp_path / "encoder.safetensors")}
    with pytest.raises(RuntimeError) as refused:
        run("train.json", *files, **lists, **encoder)
    assert "the list 'validation' is empty" in str(first_cause(refused.value))
    trained = run("train.json", *files, protocol, **lists, **encoder)
    assert len(trained.parser.get_parsed_content("train#dataset")) == 4
    assert len(trained.parser.get_parsed_content("validate#dataset")) == 2
    run("train.json", "evaluate.json", *files, protocol, **lists)
    assert "of the test list" in (tmp_path / "eval/transductive.txt").read_text()
    with (tmp_path / "eval/val_mean_dice_raw.csv").open() as table:
        assert len(list(csv.DictReader(table))) == 2
