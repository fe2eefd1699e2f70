"""The bundle `ssl3d`: every network, pre-trained on synthetic images and fine-tuned, tiny."""

from __future__ import annotations

import csv
import json
import logging
import re
import runpy
import sys
from collections import Counter
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.nets import SegResNetDS

from common.checkpoint_file import read_checkpoint
from common.checks import first_cause
from common.compare.plan import make_plan
from common.compare.settings import read_settings
from common.data import label_map, label_names, prepare_pretext_batch
from common.weights import convert, read_encoder
from common.weights.__main__ import model

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = "datasets/sample.json"
CONFIGS = Path(__file__).resolve().parents[2] / "bundles" / "ssl3d" / "configs"
PRETEXTS = tuple(sorted(path.stem for path in (CONFIGS / "pretexts").glob("*.json")))
SMALL = {
    "spacing": [4.0, 4.0, 4.0],
    "map_size": [48, 64, 48],
    "image_size": [40, 48, 40],
    "roi_size": [32, 48, 32],
    "batches_per_epoch": 1,
    "max_epochs": 1,
    "val_interval": 1,
}
LISTS = {"train": "training", "validate": "validation"}
THIN = {
    "dynunet_small": {"segmentation_net#filters": [4, 4, 8, 8, 8]},
    "mednext": {"segmentation_net#init_filters": 4},
    "resenc": {"segmentation_net#features": [8, 8, 16, 16, 16], "segmentation_net#blocks": [1, 2, 1, 1, 1]}
    | {"segmentation_net#strides": [1, 2, 2, 2, 2]},
    "resenc_small": {"segmentation_net#features": [8, 8, 16, 16, 16]},
    "segresnet": {"segmentation_net#init_filters": 8},
    "swin_unetr": {"segmentation_net#feature_size": 12, "segmentation_net#depths": [1, 1, 1, 1]}
    | {"image_size": [40, 64, 40], "roi_size": [32, 64, 32]},
    "unetr": {"segmentation_net#hidden_size": 48, "segmentation_net#mlp_dim": 96, "segmentation_net#num_heads": 4}
    | {"segmentation_net#num_layers": 4, "segmentation_net#feature_size": 4, "roi_size": [32, 32, 32]},
}


@pytest.fixture
def run(run_bundle):
    def run(*files, **overrides):
        return run_bundle(*files, bundle="ssl3d", **(SMALL | overrides))

    return run


@pytest.mark.way("run", bundle="ssl3d")
@pytest.mark.parametrize("network", THIN)
def test_any_network_is_pretrained_and_fine_tuned(run, tmp_path, network, caplog, event_images):
    files, thin = [SAMPLE, f"networks/{network}.json"], THIN[network]
    run("pretrain.json", *files, output_dir=str(tmp_path), **thin)
    state, record = read_encoder(tmp_path / "encoder.safetensors")
    assert record["method"] == "SyntheticSegmentation" and record["preparation"]["spacing"] == [4.0] * 3
    assert [step["transform"] for step in record["preparation"]["intensity"]] == ["NormalizeForegroundd"]
    assert list(event_images(tmp_path / "tensorboard")) == ["validation/0"]

    with caplog.at_level(logging.INFO):
        path = str(tmp_path / "encoder.safetensors")
        tuned = run("train.json", *files, output_dir=str(tmp_path), pretrained_encoder=path, execute=False, **thin)
    encoder, net = (tuned.parser.get_parsed_content(name) for name in ("encoder", "segmentation_net"))
    assert all(torch.equal(value.cpu(), state[name]) for name, value in encoder.state_dict().items())
    report = caplog.text[caplog.text.index("transfer report") :]
    assert "100.0%" in report.partition("adapted")[0] and "warning" not in report.lower()
    held = {id(p) for p in encoder.parameters()}
    left = [name for name, p in net.named_parameters() if id(p) not in held]
    # What the file does not hold are the last layers.
    assert left and all(
        name.startswith(("output_block", "out_0", "out.", "decoder.seg_layers", "conv_final")) for name in left
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "network",
    ["densenet121", "genesis", "inflated_resnet152", "nnunet", "primus", "resnet50", "sam_med3d", "stunet", "vista3d"],
)
def test_a_network_for_published_weights_takes_a_step(run, tmp_path, network):
    """At its full size, on one crop as small as its strides allow."""
    before = {}

    def keep(workflow):
        net = workflow.parser.get_parsed_content("segmentation_net")
        before.update((name, value.detach().clone()) for name, value in net.named_parameters())

    data = {f"{part}#dataset#data": f"$@data['{name}'][:1]" for part, name in LISTS.items()}
    sizes = {"image_size": [64, 64, 64], "roi_size": [64, 64, 64], "batch_size": 1, "log_images": 0}
    files = ["train.json", SAMPLE, f"networks/{network}.json"]
    tuned = run(*files, output_dir=str(tmp_path), before=keep, **sizes, **data)
    encoder, net = (tuned.parser.get_parsed_content(name) for name in ("encoder", "segmentation_net"))
    assert {id(p) for p in encoder.parameters()} <= {id(p) for p in net.parameters()}
    same = [name for name, value in net.named_parameters() if torch.equal(value, before[name])]
    assert same == [], "every parameter has a gradient"
    assert (tmp_path / "model.pt").is_file()


def test_one_command_fine_tunes_a_converted_file_on_images_prepared_as_its_own(
    cohort, tmp_path, monkeypatch, unchanged
):
    """MONAI's command in this process, from published weights as they come to a model whose record has their rule."""
    state = SegResNetDS(3, 4, 1, 2, blocks_down=(1, 2, 2), norm="INSTANCE").state_dict()
    torch.save({f"image_encoder.{name}": tensor for name, tensor in state.items()}, tmp_path / "vista.pt")
    file = tmp_path / "encoder.safetensors"
    rule = convert(tmp_path / "vista.pt", file, published="vista3d", spacing=[4.0, 5.0, 4.0])["preparation"]
    files = [str(CONFIGS / name) for name in ("train.json", SAMPLE, "networks/vista3d.json")]
    ids = {key: value for key, value in SMALL.items() if key != "spacing"}
    ids |= {"encoder#network#init_filters": 4, "encoder#network#blocks_down": [1, 2, 2], "roi_size": [16, 24, 16]}
    ids |= {part + "#dataset#data": f"$@data['{name}'][:1]" for part, name in LISTS.items()}
    ids |= {"dataset_dir": str(cohort), "output_dir": str(tmp_path / "out"), "log_images": 0, "device": "cpu"}
    ids |= {"pretrained_encoder": str(file), "prepare_as": "encoder", "logging_file": False}
    flags = [word for name, value in ids.items() for word in (f"--{name}", str(value))]
    main = str(Path(monai.bundle.__file__).with_name("__main__.py"))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # the bundle sets it
    monkeypatch.setattr(sys, "argv", [main, "run", "--config_file", str(files), *flags])
    with unchanged():
        runpy.run_path(main, run_name="__main__")
    made = read_checkpoint(tmp_path / "out/model.pt")[1]["preparation"]
    assert made["spacing"] == [4.0, 5.0, 4.0] and made["orientation"] == "RAS"
    assert made["intensity"] == rule["intensity"] and made["intensity"][0]["transform"] == "ScaleIntensityRanged"
    config = json.loads((tmp_path / "out/train_config.json").read_text())
    assert (config["prepare_as"], config["pretrained_encoder"]) == ("encoder", str(file))
    assert config["spacing"] == [4.0, 5.0, 4.0] and config["intensity"]["a_max"] == rule["intensity"][0]["a_max"]


@pytest.mark.parametrize(
    ("network", "pretext"), [("dynunet_small", "mae"), ("resenc", "genesis"), ("segresnet", "mae")]
)
def test_images_are_restored(run, tmp_path, network, pretext, caplog, event_images):
    """The restoring pretexts read scans, and what they train fits the network that is fine-tuned, decoder included."""
    thin = THIN[network]
    files = [SAMPLE, f"networks/{network}.json"]
    run("pretrain.json", *files, f"pretexts/{pretext}.json", output_dir=str(tmp_path), **thin)
    state, record = read_encoder(tmp_path / "encoder.safetensors")
    assert record["method"] == "Restoration" and record["data"].endswith("unlabelled.json")
    assert [step["transform"] for step in record["preparation"]["intensity"]] == ["NormalizeForegroundd"]
    assert list(event_images(tmp_path / "tensorboard")) == ["validation/0"]
    with caplog.at_level(logging.INFO):
        path = str(tmp_path / "encoder.safetensors")
        tuned = run("train.json", *files, output_dir=str(tmp_path), pretrained_encoder=path, execute=False, **thin)
    encoder = tuned.parser.get_parsed_content("encoder")
    assert all(torch.equal(value.cpu(), state[name]) for name, value in encoder.state_dict().items())
    assert "100.0%" in caplog.text.partition("transfer report")[2].partition("adapted")[0]


# Pretexts of the encoder alone: their method, a network, and what their crops need.
OF_ENCODERS = {
    "cpc": ("CPC", "resenc", {"pretext#grid": [2, 2, 2], "pretext#steps": [1]}),
    "exemplar": ("Exemplar", "resenc_small", {}),
    "jigsaw": ("Jigsaw", "mednext", {"pretext#grid": [2, 2, 2]}),
    "rotation": ("Rotation", "segresnet", {}),
    "rpl": ("RelativeLocation", "dynunet_small", {}),
}


@pytest.mark.parametrize("pretext", OF_ENCODERS)
def test_encoders_are_pretrained(run, tmp_path, pretext, caplog, event_images):
    """On scans, without a decoder, which fine-tuning then begins as it is drawn."""
    method, network, sizes = OF_ENCODERS[pretext]
    thin, files = THIN[network], [SAMPLE, f"networks/{network}.json"]
    run("pretrain.json", *files, f"pretexts/{pretext}.json", output_dir=str(tmp_path), batch_size=2, **thin, **sizes)
    state, record = read_encoder(tmp_path / "encoder.safetensors")
    assert record["method"] == method and record["data"].endswith("unlabelled.json")
    assert [step["transform"] for step in record["preparation"]["intensity"]] == ["NormalizeForegroundd"]
    assert list(event_images(tmp_path / "tensorboard")) == []
    with caplog.at_level(logging.INFO):
        path = str(tmp_path / "encoder.safetensors")
        tuned = run("train.json", *files, output_dir=str(tmp_path), pretrained_encoder=path, execute=False, **thin)
    now = tuned.parser.get_parsed_content("encoder").state_dict()
    assert 0 < len(state) < len(now) and all(torch.equal(now[name].cpu(), value) for name, value in state.items())
    assert "warning" not in caplog.text.partition("transfer report")[2].lower()


def test_random_shapes_need_no_data(run, tmp_path, event_images):
    thin = THIN["dynunet_small"]
    files = [SAMPLE, "networks/dynunet_small.json"]
    run("pretrain.json", *files, "pretexts/shapes.json", dataset_dir="nowhere", output_dir=str(tmp_path), **thin)
    state, record = read_encoder(tmp_path / "encoder.safetensors")
    assert record["method"] == "LabelContrast" and record["data"] == "random shapes, no scans" and not record["scans"]
    assert [step["transform"] for step in record["preparation"]["intensity"]] == ["NormalizeForegroundd"]
    assert list(event_images(tmp_path / "tensorboard")) == ["validation/0"]
    path = str(tmp_path / "encoder.safetensors")
    tuned = run("train.json", *files, output_dir=str(tmp_path), pretrained_encoder=path, execute=False, **thin)
    encoder = tuned.parser.get_parsed_content("encoder")
    assert all(torch.equal(value.cpu(), state[name]) for name, value in encoder.state_dict().items())


UNUSED = "norm_cross_attn"
"""Norms of MONAI's ViT for attention to another input, which no network here has."""
TILED = ("cpc", "jigsaw", "rpl")
"""Pretexts on tiles much smaller than a crop, which do not fit transformers: a ViT has positions for one size, and the
last stride of Swin UNETR is 32."""
PAIRS = [(net, pretext) for pretext in PRETEXTS for net in THIN if not (pretext in TILED and net.endswith("unetr"))]
# Each pretext over one network, which is another from one to the next.
FEW = {(list(THIN)[number % len(THIN)], pretext) for number, pretext in enumerate(PRETEXTS)} & {*PAIRS}
FEW |= {("resenc", pretext) for pretext in PRETEXTS if pretext not in {name for _, name in FEW}}


@pytest.mark.slow_unless(lambda network, pretext: (network, pretext) in FEW)
@pytest.mark.parametrize(("network", "pretext"), PAIRS)
def test_any_pretext_over_any_network(run, tmp_path, network, pretext):
    """A loss that is finite, and gradients in the encoder."""
    files, sizes = [SAMPLE, f"networks/{network}.json", f"pretexts/{pretext}.json"], OF_ENCODERS.get(pretext, [{}])[-1]
    workflow = run("pretrain.json", *files, output_dir=str(tmp_path), execute=False, **THIN[network], **sizes)
    get = workflow.parser.get_parsed_content
    net, loss, encoder = (get(name) for name in ("network_def", "loss", "encoder"))
    image, _ = prepare_pretext_batch(
        {"image": torch.stack([get("train#dataset")[number]["image"] for number in (0, 1)])}
    )
    value = loss(net(image), image)
    assert torch.isfinite(value)
    value.backward()
    assert sum(float(p.grad.abs().sum()) for p in encoder.parameters() if p.grad is not None) > 0
    parts = [name for name, p in encoder.named_parameters() if p.grad is None and UNUSED not in name]
    held = {name.split(".")[0] for name in parts}
    assert not held, "parts that the encoder file would hold, and that nothing trained"


def test_it_learns_to_segment_scans_without_a_mask(run, tmp_path, cohort):
    """Pre-trained on label maps alone, the whole network finds more of a scan than one class everywhere would."""
    files = [SAMPLE, "presets/whole_net.json"]
    fitted = {"batches_per_epoch": 30, "batch_size": 2, "val_interval": 1, "learning_rate": 0.004}
    run("pretrain.json", *files, output_dir=str(tmp_path), **fitted, **THIN["dynunet_small"])
    out = tmp_path / "masks"
    run(
        "inference.json",
        SAMPLE,
        workflow_type="infer",
        dataset_dir=str(cohort / "t1_brain"),
        datalist="@dataset_dir",
        model_path=str(tmp_path / "encoder.safetensors"),
        output_dir=str(out),
        **THIN["dynunet_small"],
    )
    found = nib.load(out / "sub-001_seg.nii.gz").get_fdata()
    truth = nib.load(cohort / "structures4" / "sub-001.nii.gz").get_fdata()
    inside = truth > 0
    dice = 2 * ((found > 0) & inside).sum() / ((found > 0).sum() + inside.sum())
    assert dice > 0.6, dice


def test_mirroring_is_of_training_and_of_inference(run, tmp_path, cohort):
    """Each axis is flipped in training, image and label alike, and each window is predicted in 8 mirror images."""
    files, thin = [SAMPLE, "networks/dynunet_small.json", "presets/mirror.json"], THIN["dynunet_small"]
    given = {"output_dir": str(tmp_path), "execute": False, **thin}
    trained = run("train.json", *files, **given)
    steps = trained.parser.get_parsed_content("train#preprocessing").transforms
    flips = [step for step in steps if type(step).__name__ == "RandFlipd"]
    assert [step.flipper.spatial_axis for step in flips] == [0, 1, 2]
    assert all(step.keys == ("image", "label") for step in flips)
    applied = run("inference.json", *files, workflow_type="infer", dataset_dir=str(cohort / "t1_brain"), **given)
    for workflow in (trained, applied):
        inferer = workflow.parser.get_parsed_content("inferer")
        seen = []
        inferer(torch.zeros(1, 1, 32, 48, 32), lambda window, seen=seen: (seen.append(len(window)), window)[1])
        assert sum(seen) == 8


def test_mirroring_is_refused_where_sides_are_classes(run, tmp_path):
    """A mirrored crop would name them wrongly."""
    files = [SAMPLE, "networks/dynunet_small.json", "presets/mirror.json"]
    names = {"0": "background", "1": "left kidney", "2": "right kidney", "3": "liver", "4": "spleen"}
    with pytest.raises(Exception) as caught:
        run("train.json", *files, output_dir=str(tmp_path), structure_names=names, **THIN["dynunet_small"])
    assert "mirrors left to right" in str(first_cause(caught.value))
    assert not list(tmp_path.glob("*.pt"))


def test_mirroring_that_another_file_takes_out_of_training_is_refused(run, tmp_path):
    files = [SAMPLE, "networks/dynunet_small.json", "presets/mirror.json", "presets/nnunet_intensities.json"]
    with pytest.raises(Exception) as caught:
        run("train.json", *files, output_dir=str(tmp_path), **THIN["dynunet_small"])
    assert "list presets/mirror.json behind" in str(first_cause(caught.value))
    files[2:] = files[:1:-1]
    run("train.json", *files, output_dir=str(tmp_path), execute=False, **THIN["dynunet_small"])


def test_mirroring_is_refused_with_several_processes_too():
    parser = ConfigParser()
    files = ("train.json", SAMPLE, "presets/mirror.json", "multi_gpu_train.json")
    parser.read_config([str(CONFIGS / name) for name in files])
    parser["structure_names"] = {"1": "left kidney", "2": "right kidney"}
    with pytest.raises(Exception) as caught:
        parser.get_parsed_content(f"initialize#{len(parser['initialize']) - 1}")
    assert "mirrors left to right" in str(first_cause(caught.value))


def test_fine_tuning_goes_on_with_the_layers_of_the_classes(run, tmp_path, cohort):
    """With ``heads``, fine-tuning for the same task begins where pre-training ended; for another, it is refused."""
    files, thin = [SAMPLE, "presets/whole_net.json"], THIN["dynunet_small"]
    run("pretrain.json", *files, output_dir=str(tmp_path), **thin)
    path = str(tmp_path / "encoder.safetensors")
    state, record = read_encoder(path)
    assert record["preparation"]["task"] == "structures4"
    tuned = run("train.json", *files, output_dir=str(tmp_path), pretrained_encoder=path, execute=False, **thin)
    own = tuned.parser.get_parsed_content("segmentation_net").state_dict()
    assert len(state) < len(own)  # MONAI's DynUNet names its layers twice
    for name in ("output_block.conv.conv.weight", "output_block.conv.conv.bias"):
        assert torch.equal(own[name].cpu(), state[name])
    settings = {"pretrained_encoder": path, "output_dir": str(tmp_path), "execute": False, **thin}
    with pytest.raises(Exception) as caught:
        run("train.json", *files, task="skull", **settings)
    cause = first_cause(caught.value)
    assert isinstance(cause, ValueError) and "predict the classes of structures4, not those of skull" in str(cause)
    # Without its last layers, the same file serves any task.
    run("train.json", SAMPLE, **settings)


def test_a_whole_network_becomes_a_model_for_label(run, tmp_path, cohort):
    files, thin = [SAMPLE, "presets/whole_net.json"], THIN["dynunet_small"]
    run("pretrain.json", *files, output_dir=str(tmp_path), **thin)
    state, _ = read_encoder(tmp_path / "encoder.safetensors")
    model(str(tmp_path / "encoder.safetensors"), str(tmp_path / "model.pt"))
    used = run(
        "inference.json", SAMPLE, workflow_type="infer", dataset_dir=str(cohort / "t1_brain"), datalist="@dataset_dir",
        output_dir=str(tmp_path / "masks"), execute=False, **thin,
    )  # fmt: skip
    network = used.parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True), strict=False)  # as Label does
    own = network.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in state.items())
    other = run(
        "inference.json", SAMPLE, workflow_type="infer", dataset_dir=str(cohort / "t1_brain"), datalist="@dataset_dir",
        output_dir=str(tmp_path / "masks"), execute=False, **thin | {"spacing": [3.0, 3.0, 3.0]},
    )  # fmt: skip
    with pytest.raises(ValueError, match="spacing"):
        other.parser.get_parsed_content("network_def").load_state_dict(
            torch.load(tmp_path / "model.pt", weights_only=True), strict=False
        )
    run("pretrain.json", SAMPLE, output_dir=str(tmp_path / "headless"), **thin)
    with pytest.raises(ValueError, match="has no last layers"):
        model(str(tmp_path / "headless" / "encoder.safetensors"), str(tmp_path / "none.pt"))
    assert not (tmp_path / "none.pt").exists()


@pytest.mark.parametrize("task", ["structures4", "structures33", "structures34", "skull"])
def test_each_task_has_targets_for_the_maps(run, task, cohort):
    workflow = run("pretrain.json", SAMPLE, f"tasks/{task}.json", execute=False, output_dir="unused")
    targets = workflow.parser.get_parsed_content("targets")
    numbers = set(np.unique(nib.load(cohort / "anatomy" / "sub-001.nii.gz").dataobj).tolist())
    classes = {targets[number] for number in numbers}
    assert {0} < classes <= set(label_names(task))
    assert workflow.parser.get_parsed_content("num_classes") == len(label_names(task))
    groups = label_map("freesurfer", task)
    assert all(number in groups[targets[number]] or targets[number] == 0 for number in numbers)
    assert targets[165] == targets[258] == 0  # skull and scalp


def test_a_map_of_one_label_is_refused_by_name(run, tmp_path, cohort):
    image = nib.load(cohort / "anatomy" / "sub-001.nii.gz")
    nib.save(nib.Nifti1Image(np.full(image.shape, 3, np.uint8), image.affine), tmp_path / "one.nii.gz")
    (tmp_path / "maps.json").write_text(json.dumps({"training": [{"image": "one.nii.gz"}], "validation": []}))
    with pytest.raises(Exception) as caught:
        run("pretrain.json", SAMPLE, dataset_dir=str(tmp_path), pretrain_datalist=str(tmp_path / "maps.json"),
            output_dir=str(tmp_path / "out"))  # fmt: skip
    cause = first_cause(caught.value)
    assert isinstance(cause, ValueError) and "one.nii.gz" in str(cause) and "constant" in str(cause)


SCANS = {"image_size": [32, 48, 32], "segmentation_net#filters": [4, 4, 8, 8, 8]}


@pytest.fixture(scope="module")
def encoder_file(run_bundle, tmp_path_factory):
    """Of a pre-training of the whole net."""
    folder = tmp_path_factory.mktemp("pretrained")
    run_bundle("pretrain.json", SAMPLE, bundle="ssl3d", output_dir=str(folder), **(SMALL | SCANS))
    return folder / "encoder.safetensors"


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file, skipinitialspace=True))


@pytest.mark.parametrize("task", ["age", "diagnosis"])
def test_a_number_a_scan(run, run_bundle, encoder_file, cohort, event_images, tmp_path, caplog, task):
    files = [SAMPLE, f"tasks/{task}.json"]
    # an epoch of both classes or several ages; validation has one scan
    with caplog.at_level(logging.INFO):
        tuned = run("train.json", *files, output_dir=str(tmp_path), pretrained_encoder=str(encoder_file), **SCANS)
    assert "the encoder has no decoder" in caplog.text and not event_images(tmp_path / "tensorboard")
    encoder = tuned.parser.get_parsed_content("encoder")
    assert set(encoder.state_dict()) < set(read_encoder(encoder_file)[0])
    run("train.json", "evaluate.json", *files, output_dir=str(tmp_path), **SCANS)
    run_bundle(
        "inference.json", *files, bundle="ssl3d", workflow_type="inference", model_path=str(tmp_path / "model.pt"),
        dataset_dir=str(cohort / "t1_brain"), datalist=str(cohort / "t1_brain"), output_dir=str(tmp_path / "inference"),
        spacing=SMALL["spacing"], **SCANS,
    )  # fmt: skip

    lists = json.loads((cohort / "structures4.json").read_text())
    truth = {Path(item["image"]).name: item[task] for item in lists["test"]}
    table = rows(tmp_path / "eval/predictions.csv")
    assert {Path(row["filename"]).name: float(row["label"]) for row in table} == pytest.approx(truth)
    found = {Path(row["filename"]).name: row for row in rows(tmp_path / "inference/predictions.csv")}
    assert len(found) > len(table)
    measured = dict(line.split(",") for line in (tmp_path / "eval/metrics.csv").read_text().split())
    for row in table:  # the same net on the same scan
        again = found[Path(row["filename"]).name]
        assert again["label"] == "" and float(again["prediction"]) == pytest.approx(float(row["prediction"]), abs=0.05)
    if task == "age":
        errors = [abs(float(row["label"]) - float(row["prediction"])) for row in table]
        assert float(measured["val_mae"]) == pytest.approx(np.mean(errors), rel=1e-4)
        ages = [item["age"] for item in lists["training"]]
        state = torch.load(tmp_path / "model.pt", weights_only=True)
        assert (float(state["mean"]), float(state["std"])) == pytest.approx((np.mean(ages), np.std(ages)), rel=1e-5)
        assert not any(name.startswith("encoder.upsamples") for name in state)
    else:
        assert set(measured) == {"val_auc", "val_accuracy"}
        for row in table:
            chances = [float(row[f"probability_{number}"]) for number in range(3)]
            assert sum(chances) == pytest.approx(1, abs=1e-4) and chances.index(max(chances)) == int(row["prediction"])


def test_a_number_from_volumes(run, run_bundle, encoder_file, cohort, tmp_path, caplog):
    """A whole net's classes, found without masks, tell the number; the net itself stays as it was."""
    whole = tmp_path / "whole"
    run("pretrain.json", SAMPLE, "presets/whole_net.json", output_dir=str(whole), **SCANS)
    files = [SAMPLE, "tasks/age.json", "presets/volumes.json"]
    given = SCANS | {"output_dir": str(tmp_path), "pretrained_encoder": str(whole / "encoder.safetensors")}
    with caplog.at_level(logging.INFO):
        run("train.json", *files, **given)
    count = len(json.loads((cohort / "structures4.json").read_text())["training"])
    assert f"ridge regression on the volumes of {count} training items" in caplog.text
    state, before = torch.load(tmp_path / "model.pt", weights_only=True), read_encoder(whole / "encoder.safetensors")[0]
    assert before and all(torch.equal(state[f"network.{name}"], tensor) for name, tensor in before.items())
    assert state["head.weight"].shape == (1, 12) and (state["feature_std"] > 0).all() and state["mean"] > 0
    run("train.json", "evaluate.json", *files, output_dir=str(tmp_path), **SCANS)
    run_bundle(
        "inference.json", *files, bundle="ssl3d", workflow_type="inference", model_path=str(tmp_path / "model.pt"),
        dataset_dir=str(cohort / "t1_brain"), datalist=str(cohort / "t1_brain"), output_dir=str(tmp_path / "inference"),
        spacing=SMALL["spacing"], **SCANS,
    )  # fmt: skip
    found = {Path(row["filename"]).name: row for row in rows(tmp_path / "inference/predictions.csv")}
    for row in rows(tmp_path / "eval/predictions.csv"):
        again = found[Path(row["filename"]).name]
        assert float(again["prediction"]) == pytest.approx(float(row["prediction"]), abs=0.05)
    with pytest.raises(Exception) as caught:
        run("train.json", *files, **given | {"pretrained_encoder": str(encoder_file)})
    assert "last layers" in str(first_cause(caught.value))
    with pytest.raises(Exception) as caught:
        run("train.json", *files, **given | {"learnt_task": "structures33"})
    assert "predict the classes of structures4, not those of structures33" in str(first_cause(caught.value))


@pytest.mark.parametrize("network", [name for name in THIN if "unetr" not in name])
def test_volumes_of_every_unet(parsed, cohort, network):
    thin = THIN[network] | {"image_size": [32, 32, 32]}
    files = ["train.json", SAMPLE, f"networks/{network}.json", "tasks/age.json", "presets/volumes.json"]
    parser = parsed("ssl3d", files, cohort, **thin)
    net = parser.get_parsed_content("network")
    assert net(torch.rand(2, 1, 32, 32, 32)).shape == (2, 1) and net.head.in_features == 12
    state = {f"network.{name}" for name in parser.get_parsed_content("encoder").state_dict()}
    assert state | {f"head.{name}" for name in ("weight", "bias")} == {name for name, _ in net.named_parameters()}


@pytest.mark.parametrize("pooled", ["last", "all"])
@pytest.mark.parametrize("network", THIN)
def test_any_encoder_tells_a_number(parsed, cohort, network, pooled):
    """Of maps of every network; with one optimiser's group for each of its layers."""
    thin = THIN[network] | {"pooled": pooled, "image_size": [32, 32, 32]}
    files = ["train.json", SAMPLE, f"networks/{network}.json", "tasks/age.json", "schedules/layer_decay.json"]
    parser = parsed("ssl3d", files, cohort, **thin)
    net, encoder = parser.get_parsed_content("network"), parser.get_parsed_content("encoder")
    widths = encoder.channels if pooled == "all" else encoder.channels[-1:]
    assert net.head[2].in_features == sum(widths)
    net(torch.rand(2, 1, 32, 32, 32)).mean().backward()
    assert not [name for name, p in net.named_parameters() if p.grad is None and UNUSED not in name]
    groups = parser.get_parsed_content("optimizer").param_groups
    assert {group["part"] for group in groups} == {"encoder", "head"}


@pytest.mark.parametrize("network", sorted(path.stem for path in CONFIGS.glob("networks/*.json")))
def test_every_network_takes_the_files_that_leave_a_decoder_out(network):
    """Among them encoders that have none."""
    overlays = (("train.json", "tasks/age.json"), ("pretrain.json", "pretexts/rotation.json"))
    for base, overlay in overlays:
        parser = ConfigParser()
        parser.read_config([str(CONFIGS / name) for name in (base, f"networks/{network}.json", overlay)])
        parser["roi_size"] = parser["image_size"] = [128, 128, 128]
        with torch.device("cpu" if network == "swin_unetr" else "meta"):  # Swin's transformer reads values when made
            encoder = parser.get_parsed_content("encoder")
        assert not re.search(r"upsample|decod|up_|(^| )encoder\d", " ".join(encoder.state_dict()))


def test_exemplars_are_of_different_scans_in_validation_of_several_processes():
    parser = ConfigParser()
    names = ("pretrain.json", "pretexts/exemplar.json", "multi_gpu_pretrain.json")
    parser.read_config([str(CONFIGS / name) for name in names])
    assert parser["validate#dataloader#sampler"]["_target_"] == "common.data.volume_sampler.VolumeSampler"


def test_a_comparison_of_ages(cohort, tmp_path):
    """Pre-training keeps its own task; `make_plan` loads an item of each arm."""
    settings = {
        "bundle": str(CONFIGS.parent), "output": str(tmp_path), "dataset_dir": str(cohort), "seeds": "0", "labels": "1",
        "config_file": f"{SAMPLE},tasks/age.json", "override": SMALL | SCANS,
        "arms": {"scratch": {"schedule": "scratch"}, "synthetic": {"pretrain": [], "schedule": "warmup"}},
        "pretrain_override": {"task": "structures4", "num_classes": 5},
    }  # fmt: skip
    for name in ("map_size", "max_epochs", "val_interval"):
        settings["override"].pop(name)
    plan = make_plan(read_settings(**settings), try_items=True)
    assert plan.evaluate.metrics == {"val_mae": "lower"}
    pretrain = next(one for one in plan.runs if one.stage == "pretrain").config()
    assert pretrain["task"] == "structures4" and pretrain["num_classes"] == 5


def test_every_pretext_is_an_arm_of_a_comparison(cohort, tmp_path):
    """Those that read scans, label maps, and nothing at all (`shapes`)."""
    settings = {
        "bundle": str(CONFIGS.parent), "output": str(tmp_path), "dataset_dir": str(cohort), "seeds": "0", "labels": "1",
        "config_file": SAMPLE, "steps": 2,
        "arms": {"scratch": None} | {name: {"pretrain": [f"pretexts/{name}.json"]} for name in PRETEXTS},
    }  # fmt: skip
    found = make_plan(read_settings(**settings), try_items=True)
    runs = [one for one in found.runs if one.stage == "pretrain"]
    assert [one.arm for one in runs] == list(PRETEXTS)
    assert len({one.data for one in runs}) == 3  # label maps, scans without labels, no file


@pytest.mark.parametrize("pretext", ["rpl", "genesis"])
def test_a_pretext_beside_a_task_of_scans_writes_an_encoder_for_it(run, tmp_path, pretext):
    """As `common.compare` runs `compare_adni_*.json`: the task's file is one of pre-training as well."""
    files, thin = [SAMPLE, "networks/dynunet_small.json", "tasks/diagnosis.json"], THIN["dynunet_small"]
    given = {"output_dir": str(tmp_path), "batch_size": 2, **thin}
    run("pretrain.json", *files, f"pretexts/{pretext}.json", learnt_task=None, **given)
    state, record = read_encoder(tmp_path / "encoder.safetensors")
    assert record["method"] == {"rpl": "RelativeLocation", "genesis": "Restoration"}[pretext]
    path = str(tmp_path / "encoder.safetensors")
    tuned = run("train.json", *files, num_classes=2, pretrained_encoder=path, execute=False, **given)
    now = tuned.parser.get_parsed_content("encoder").state_dict()
    assert now.keys() == state.keys() and all(torch.equal(now[name].cpu(), value) for name, value in state.items())


def test_crops_are_flipped_as_often_as_in_models_genesis(run, tmp_path):
    """Its code flips along a random axis as long as a draw is below 0.4, three times at most."""
    files = [SAMPLE, "networks/dynunet_small.json", "pretexts/genesis.json"]
    workflow = run("pretrain.json", *files, output_dir=str(tmp_path), execute=False, **THIN["dynunet_small"])
    flips = workflow.parser.get_parsed_content("train#random_transforms")[-1].set_random_state(0)
    assert flips.weights == pytest.approx([0.6, 0.4 * 0.6, 0.4**2 * 0.6, 0.4**3])
    corner = torch.arange(8.0).view(1, 2, 2, 2)
    for times, transform in enumerate(flips.transforms):
        outcomes = Counter(int(transform({"image": corner})["image"].flatten()[0]) for _ in range(300))
        # An axis that is flipped twice is as it was; 1, 2 and 4 are the axes.
        possible = {0: {0}, 1: {1, 2, 4}, 2: {0, 3, 5, 6}, 3: {1, 2, 4, 7}}[times]
        assert outcomes.keys() == possible


@pytest.mark.parametrize("pretext", ["mae", "genesis", "shapes"])
def test_last_layers_of_another_target_are_not_recorded_as_a_tasks(run, tmp_path, pretext):
    files = [SAMPLE, f"pretexts/{pretext}.json", "presets/whole_net.json"]
    workflow = run("pretrain.json", *files, output_dir=str(tmp_path), execute=False, **THIN["dynunet_small"])
    assert workflow.parser.get_parsed_content("learnt_task") is None
    handlers = workflow.parser.get_parsed_content("train#handlers")
    (saver,) = [handler for handler in handlers if type(handler).__name__ == "EncoderSaver"]
    assert saver.record["preparation"]["task"] is None


def test_a_pretext_of_the_encoder_alone_refuses_last_layers(run, tmp_path):
    files = [SAMPLE, "networks/dynunet_small.json", "pretexts/rotation.json", "presets/whole_net.json"]
    with pytest.raises(Exception) as caught:
        run("pretrain.json", *files, output_dir=str(tmp_path), batch_size=2, **THIN["dynunet_small"])
    assert "untrained last layers" in str(first_cause(caught.value))


def test_the_shipped_weights_find_their_network_in_each_file_that_states_it():
    configs = ROOT / "bundles" / "ssl3d" / "configs"
    alone, cpu, sample = (
        json.loads((configs / name).read_text()) for name in ("networks/dynunet_small.json", "presets/cpu.json", SAMPLE)
    )
    for key in ("segmentation_net", "encoder"):
        assert alone[key] == cpu[key] == sample[key]
    assert all(sample[key] == value for key, value in cpu.items())


def labels_of(*files, **values):
    """Pairs of sides and labels of surroundings and fluid of a pre-training on label maps, and its parser."""
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / "pretrain.json"), *(str(CONFIGS / name) for name in files)])
    parser.update(values)
    return [parser.get_parsed_content(name) for name in ("sided", "outside", "fluid")], parser


def test_a_label_map_of_another_numbering_is_refused_with_its_file(run, tmp_path):
    labels = np.zeros((40, 48, 40), np.uint16)
    labels[10:30, 10:30, 10:30], labels[20:24, 20:24, 20:24] = 2, 9999
    nib.save(nib.Nifti1Image(labels, np.diag([4, 4, 4, 1])), tmp_path / "one.nii.gz")
    (tmp_path / "maps.json").write_text(json.dumps({"training": [{"image": "one.nii.gz"}]}))
    given = {"pretrain_datalist": str(tmp_path / "maps.json"), "dataset_dir": str(tmp_path), "batch_size": 1}
    given |= {"cache": "none", "output_dir": str(tmp_path / "out"), **THIN["dynunet_small"]}
    files = ["pretrain.json", SAMPLE, "networks/dynunet_small.json"]
    dataset = run(*files, execute=False, **given).parser.get_parsed_content("train#dataset")
    with pytest.raises(RuntimeError) as refused:
        dataset[0]
    assert re.search(
        r"one.nii.gz has labels that no class names \(9999\): .*map_label_scheme", str(first_cause(refused.value))
    )
    run(*files, map_labels=None, execute=False, **given).parser.get_parsed_content("train#dataset")[0]


def test_images_of_several_channels_are_drawn_from_a_map(run, tmp_path):
    files = ["pretrain.json", SAMPLE, "networks/dynunet_small.json"]
    run(*files, output_dir=str(tmp_path), in_channels=2, **THIN["dynunet_small"])
    assert read_encoder(tmp_path / "encoder.safetensors")[1]["architecture"]["in_channels"] == 2


def test_sides_follow_from_the_numbering_of_the_label_maps():
    (sided, outside, fluid), _ = labels_of("datasets/ixi.json")  # mirrored, and both of its hippocampi are classes
    assert [48, 47] in sided and not outside and not fluid
    (sided, outside, fluid), parser = labels_of(map_label_scheme="malpem")
    groups = label_map("malpem", "structures33")
    left, right = (
        next(n for n, name in label_names("structures33").items() if name == f"{side}-Hippocampus")
        for side in ("Left", "Right")
    )
    assert [groups[left][0], groups[right][0]] in sided and not outside and fluid == [18]
    assert parser.get_parsed_content("deformation").sided == [tuple(pair) for pair in sided]


@pytest.mark.parametrize(("name", "files"), [("known", [SAMPLE, "presets/synthetic_brain.json"]), ("folds", [SAMPLE])])
def test_lists_of_freesurfers_labels_are_refused_with_other_maps(name, files):
    labels_of(*files)[1].get_parsed_content(name)
    with pytest.raises(RuntimeError) as refused:
        labels_of(*files, map_label_scheme="dlmuse")[1].get_parsed_content(name)
    assert "numbered as 'dlmuse'" in str(first_cause(refused.value))


def test_age_and_diagnosis_prepare_scans_alike():
    """MONAI's overlays include no other file, so that what the two share is stated twice; it has to stay the same."""
    folder = ROOT / "bundles" / "ssl3d" / "configs" / "tasks"
    age, diagnosis = (json.loads((folder / f"{name}.json").read_text()) for name in ("age", "diagnosis"))
    shared = [
        "scan_level",
        "label_scheme",
        "structure_names",
        "preprocessing",
        "crop_transforms",
        "augmentation",
        "encoder#decoder",
        "pooled",
        "learning_rate",
        "optimizer",
        "inferer",
        "handlers",
    ]
    assert {key: age[key] for key in shared} == {key: diagnosis[key] for key in shared}
    made = "deterministic_transforms"
    assert age[made][:-1] == diagnosis[made][:-1]  # the last has the classes


def gamma_curve(image, gamma, invert):
    """nnU-Net's gamma augmentation (Isensee et al., Nature Methods 2021), which keeps mean and deviation."""
    source = -image if invert else image
    low, width = source.min(), source.max() - source.min()
    curved = ((source - low) / width) ** gamma
    curved = (curved - curved.mean()) / curved.std(ddof=1) * image.std(ddof=1) + source.mean()
    return -curved if invert else curved


def contrast(image, factor):
    """nnU-Net's contrast augmentation: away from the mean or towards it, within the range of before."""
    return np.clip((image - image.mean()) * factor + image.mean(), image.min(), image.max())


@pytest.mark.parametrize(
    "number, prob, drawn, fixed, expected",
    [
        (3, 0.15, {"factors": 0.25}, {"factors": [-0.2, -0.2]}, lambda image: image * 0.8),
        (4, 0.15, {"factors": 0.25}, {"factors": [0.2, 0.2]}, lambda image: contrast(image, 1.2)),
        (6, 0.1, {"gamma": [0.7, 1.5]}, {"gamma": [1.4, 1.4]}, lambda image: gamma_curve(image, 1.4, invert=True)),
        (7, 0.3, {"gamma": [0.7, 1.5]}, {"gamma": [1.4, 1.4]}, lambda image: gamma_curve(image, 1.4, invert=False)),
    ],
    ids=["brightness", "contrast", "gamma of the inverted image", "gamma"],
)
def test_intensities_are_changed_as_in_nnunet(number, prob, drawn, fixed, expected):
    parser = ConfigParser(json.loads((CONFIGS / "presets" / "nnunet_intensities.json").read_text()))
    step = parser[f"augmentation#{number}"]
    assert step["prob"] == prob and drawn.items() <= step.items()
    parser[f"augmentation#{number}"] = step | fixed | {"prob": 1.0}
    image = np.random.default_rng(0).normal(size=(1, 6, 7, 8)).astype(np.float32)
    result = parser.get_parsed_content(f"augmentation#{number}")({"image": torch.from_numpy(image)})["image"]
    np.testing.assert_allclose(np.asarray(result), expected(image.astype(np.float64)), rtol=1e-4, atol=1e-5)


def test_nnunets_intensities_change_nothing_else():
    """An overlay replaces a list as a whole, so what stays is stated twice."""
    ours = json.loads((CONFIGS / "train.json").read_text())["augmentation"]
    theirs = json.loads((CONFIGS / "presets" / "nnunet_intensities.json").read_text())["augmentation"]
    assert [step for step in theirs if step in ours] == ours[:-1]  # the last is the gamma curve
