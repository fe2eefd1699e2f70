"""What goes wrong for users, and the one sentence that says so."""

from __future__ import annotations

import gzip
import json
import re
import runpy
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from common.checks import own_sentence

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (32, 48, 32)


def save(path: Path, data: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(data, np.diag([4.0, 4.0, 4.0, 1.0])), path)


@pytest.fixture
def data(tmp_path):
    """A small sound data set; each test spoils a part of it."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "data"
    folder.mkdir()
    items = []
    for number in range(3):
        save(folder / f"image{number}.nii.gz", rng.uniform(1, 900, SHAPE).astype(np.float32))
        save(folder / f"label{number}.nii.gz", rng.integers(0, 5, SHAPE).astype(np.uint8))
        items.append({"image": f"image{number}.nii.gz", "label": f"label{number}.nii.gz"})
    lists = {"training": items[:1], "validation": items[1:2], "test": items[2:]}
    for name in ("structures4.json", "unlabelled.json"):
        (folder / name).write_text(json.dumps(lists))
    return folder


@pytest.fixture(scope="module")
def model(run_bundle, tiny, tmp_path_factory):
    """A model file of the tiny UNETR."""
    path = tmp_path_factory.mktemp("model") / "model.pt"
    workflow = run_bundle("train.json", tiny["unetr"], execute=False)
    torch.save(workflow.parser.get_parsed_content("network_def").state_dict(), path)
    return path


@pytest.fixture
def sentence(run_bundle, tiny, data, model, tmp_path):
    """Run configs that have to fail; the sentence that the command would end with."""

    def run(*files: str, network: str = "unetr", **overrides) -> str:
        kind = "inference" if files[0] == "inference.json" else "train"
        overrides = {"output_dir": str(tmp_path / "out"), "dataset_dir": str(data), "max_epochs": 1, **overrides}
        if "inference.json" in files or "evaluate.json" in files:
            overrides = {"model_path": str(model), "task": "structures4", **overrides}
        with pytest.raises(Exception) as caught:
            run_bundle(*files, tiny[network], workflow_type=kind, **overrides)
        return own_sentence(caught.value)

    return run


def test_the_sound_data_trains(run_bundle, tiny, data, tmp_path):
    run_bundle("train.json", tiny["unetr"], output_dir=str(tmp_path / "out"), dataset_dir=str(data), max_epochs=1)
    assert (tmp_path / "out/model.pt").exists()


@pytest.mark.parametrize(
    "files", [("pretrain.json",), ("train.json",), ("train.json", "evaluate.json"), ("inference.json",)]
)
def test_missing_dataset_folder(sentence, tmp_path, files):
    text = sentence(*files, dataset_dir=str(tmp_path / "nowhere"))
    assert f"{tmp_path}/nowhere" in text and "dataset_dir" in text
    assert len(text.splitlines()) == 1


def test_image_and_label_of_different_shapes(sentence, data):
    save(data / "label0.nii.gz", np.zeros((32, 48, 30), np.uint8))
    text = sentence("train.json")
    assert f"{data}/label0.nii.gz: has the shape 32x48x30, but {data}/image0.nii.gz has 32x48x32" in text


@pytest.mark.parametrize(
    ("files", "workers"),
    [(("pretrain.json",), 0), (("pretrain.json",), 2), (("train.json",), 0), (("inference.json",), 0)],
)
def test_cut_off_volume(sentence, data, files, workers):
    for number in range(3):
        path = data / f"image{number}.nii.gz"
        path.write_bytes(path.read_bytes()[:20000])
    text = sentence(*files, num_workers=workers)
    assert f"{data}/image" in text and "cannot be read (Compressed file ended" in text


@pytest.mark.parametrize("files", [("train.json",), ("inference.json",)])
def test_error_in_a_worker_of_the_data_loader(sentence, data, files):
    """Where nothing is cached, a worker process reads the files, and torch passes on what it printed."""
    for number in range(3):
        path = data / f"image{number}.nii.gz"
        path.write_bytes(path.read_bytes()[:20000])
    given = {"cache": "none"} if files == ("train.json",) else {}
    text = sentence(*files, num_workers=1, **given)
    assert text.startswith(f"{data}/image") and "cannot be read (Compressed file ended" in text
    assert len(text.splitlines()) == 1


def test_volume_with_a_spoilt_header(sentence, data):
    (data / "image0.nii.gz").write_bytes(gzip.compress(b"not an image" * 100))
    assert f"{data}/image0.nii.gz: is not a readable NIfTI file" in sentence("train.json")


@pytest.mark.parametrize("files", [("pretrain.json",), ("train.json",), ("inference.json",)])
def test_empty_file(sentence, data, files):
    for number in range(3):
        (data / f"image{number}.nii.gz").write_bytes(b"")
    text = sentence(*files)
    assert f"{data}/image" in text and "is empty (0 bytes)" in text


def test_missing_file(sentence, data):
    (data / "label0.nii.gz").unlink()
    assert f"{data}/label0.nii.gz: does not exist" in sentence("train.json")


def test_unknown_label(sentence, data):
    label = np.zeros(SHAPE, np.uint8)
    label[10:20] = 77
    save(data / "label0.nii.gz", label)
    text = sentence("train.json")
    assert f"{data}/label0.nii.gz has labels that no class names (77)" in text
    ids = json.loads((ROOT / "bundles/pretrain_once/configs/train.json").read_text())
    named = re.findall(r"config id `(\w+)`", text)
    assert len(named) == 3 and set(named) <= set(ids)


def test_label_outside_the_classes(sentence, data):
    """With a task and a map of the user's own."""
    own = {number: [number] for number in range(5)}
    text = sentence("train.json", label_map=own, num_classes=3)
    assert f"{data}/label0.nii.gz has labels outside 0 to 2 (3, 4)" in text


@pytest.mark.parametrize("classes", [3, 7])
def test_a_number_of_classes_that_is_not_the_tasks(sentence, classes):
    text = sentence("train.json", num_classes=classes)
    assert text.startswith(f"num_classes is {classes}, but the task 'structures4' has 5 classes with the background: ")


@pytest.mark.parametrize("files", [("pretrain.json",), ("train.json",), ("inference.json",)])
def test_nan_in_a_volume(sentence, data, files):
    for number in range(3):
        image = np.ones(SHAPE, np.float32)
        image[5, 6, 7:9] = np.nan
        image[8] = 2
        save(data / f"image{number}.nii.gz", image)
    text = sentence(*files)
    assert f"{data}/image" in text and "has 2 voxels that are not finite" in text
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize(
    "files", [("pretrain.json",), ("train.json",), ("train.json", "evaluate.json"), ("inference.json",)]
)
def test_image_with_another_number_of_channels(sentence, data, files):
    rng = np.random.default_rng(0)
    for number in range(3):
        save(data / f"image{number}.nii.gz", rng.uniform(1, 900, (*SHAPE, 2)).astype(np.float32))
    text = sentence(*files)
    assert f"{data}/image" in text and "has 2 channels, but the network takes 1" in text
    assert len(text.splitlines()) == 1


def test_constant_volume(sentence, data):
    save(data / "image0.nii.gz", np.zeros(SHAPE, np.float32))
    assert f"{data}/image0.nii.gz is constant (every voxel is 0)" in sentence("pretrain.json")


@pytest.mark.parametrize("files", [("train.json", "evaluate.json"), ("inference.json",)])
@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda path: None, "no model {}: train one"),
        (lambda path: path.write_bytes(b""), "{} is not a readable checkpoint"),
        (lambda path: path.write_bytes(b"PK" * 100), "{} is not a readable checkpoint"),
        (lambda path: torch.save(torch.nn.Linear(2, 2).state_dict(), path), "{} belongs to another network: 0 of "),
        (lambda path: torch.save([1, 2], path), "{} holds no state dict"),
    ],
    ids=["missing", "empty", "rubbish", "other network", "no state dict"],
)
def test_model_that_does_not_load(sentence, tmp_path, files, spoil, expected):
    path = tmp_path / "model.pt"
    spoil(path)
    text = sentence(*files, model_path=str(path))
    assert expected.format(path) in text


def test_model_of_another_task(sentence, run_bundle, tiny, data, tmp_path):
    run_bundle("train.json", tiny["unetr"], output_dir=str(tmp_path), dataset_dir=str(data), max_epochs=1)
    text = sentence(
        "train.json", "evaluate.json", model_path=str(tmp_path / "model.pt"), **{"segmentation_net#out_channels": 7}
    )
    assert f"{tmp_path}/model.pt belongs to another network" in text and "tasks/" in text


def test_encoder_of_another_architecture(sentence, run_bundle, tiny, data, tmp_path):
    run_bundle("pretrain.json", tiny["unetr"], output_dir=str(tmp_path), dataset_dir=str(data), max_epochs=1)
    path = str(tmp_path / "encoder.safetensors")
    text = sentence("train.json", network="swin_unetr", pretrained_encoder=path)
    assert text.startswith(f"{path} (MAE on ViTEncoder) fits 0.0% of this encoder (SwinEncoder)")
    assert len(text.splitlines()) == 1
    wider = {"segmentation_net#hidden_size": 36, "segmentation_net#mlp_dim": 72}
    text = sentence("train.json", pretrained_encoder=path, **wider)
    assert "not all of it: it was made with hidden_size " in text


def test_missing_and_cut_encoder_file(sentence, tmp_path):
    path = tmp_path / "encoder.safetensors"
    assert f"no encoder file {path}" in sentence("train.json", pretrained_encoder=str(path))
    path.write_bytes(b"\x10\x00\x00")
    assert f"{path} is not a readable safetensors file" in sentence("train.json", pretrained_encoder=str(path))


@pytest.mark.parametrize("files", [("pretrain.json",), ("train.json",), ("inference.json",)])
def test_crop_that_is_no_multiple_of_the_patch(sentence, files):
    text = sentence(*files, roi_size=[40, 48, 40])
    assert "multiple of its patch size 16" in text and "(40, 48, 40)" in text


@pytest.mark.parametrize("files", [("pretrain.json",), ("train.json",)])
def test_crop_larger_than_the_volumes(sentence, files):
    text = sentence(*files, image_size=[32, 48, 32], roi_size=[48, 48, 48])
    assert "set roi_size" in text and "32, 48, 32" in text
    assert len(text.splitlines()) == 1


def test_crop_that_swin_unetr_cannot_halve(sentence):
    assert "multiple of" in sentence("pretrain.json", network="swin_unetr", roi_size=[48, 64, 64])


@pytest.mark.parametrize("files", [("train.json",), ("train.json", "evaluate.json")])
def test_empty_list(sentence, data, files):
    content = json.loads((data / "structures4.json").read_text())
    (data / "structures4.json").write_text(json.dumps({"training": content["training"]}))
    text = sentence(*files)
    assert f"the list '{'test' if len(files) == 2 else 'validation'}' is empty" in text


def test_loss_that_is_not_finite(sentence, data, tmp_path):
    text = sentence("pretrain.json", learning_rate=1e30, max_epochs=9)
    assert text.startswith("the loss is ") and f"{data}/image0.nii.gz" in text
    assert not (tmp_path / "out/encoder.safetensors").exists()


def test_weights_that_are_not_finite_are_not_saved(sentence, tmp_path):
    text = sentence("pretrain.json", **{"optimizer#lr": float("inf")})
    assert "the last step of epoch 1" in text and "not finite" in text
    assert not (tmp_path / "out/pretrain.ckpt").exists()


def test_misspelt_override_on_the_command_line(tiny, tmp_path, monkeypatch):
    """MONAI's command in this process; test_pack.py has one of its own, and what it prints."""
    config = [str(ROOT / "bundles/pretrain_once/configs/pretrain.json"), tiny["unetr"]]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # the bundle sets it
    words = ["--config_file", str(config), "--logging_file", "False", "--epoch", "1"]
    monkeypatch.setattr(sys, "argv", ["", "run", *words])
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
    assert caught.value.code == "--epoch names no id of pretrain.json + unetr.json; did you mean --max_epochs?"
    assert not (tmp_path / "models").exists()
