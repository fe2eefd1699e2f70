from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from torch import nn

from common.data.sample import make_subject
from common.weights import read_encoder, save_encoder, shipped
from common.weights.__main__ import show
from common.weights.encoder_file import read_record
from common.weights.model_file import load_model


@pytest.fixture
def by_name(tmp_path, monkeypatch):
    folder = tmp_path / "encoders"
    monkeypatch.setattr(shipped, "FOLDER", folder)
    save_encoder(nn.Conv3d(1, 2, 3), folder / "head.safetensors", {"method": "a test"})
    return folder / "head.safetensors"


def test_an_encoder_is_found_by_its_name(by_name):
    assert shipped.shipped_encoders() == ["head"]
    assert shipped.find_encoder("head") == by_name
    assert read_record("head")["method"] == "a test"
    assert read_encoder("head")[0].keys() == read_encoder(by_name)[0].keys()


def test_a_file_comes_before_a_name(by_name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_encoder(nn.Conv3d(1, 2, 3), "head", {"method": "the user's"})
    assert read_record("head")["method"] == "the user's"


@pytest.mark.parametrize("path", ["hand", "folder/head", "head.safetensors", ""])
def test_what_is_not_there_is_refused_with_the_names_that_are(by_name, path):
    with pytest.raises(FileNotFoundError, match=r"of an included encoder \(head\)"):
        read_encoder(path)
    with pytest.raises(FileNotFoundError, match=r"of an included encoder \(head\)"):
        read_record(path)


def test_every_shipped_file_can_be_read():
    for name in shipped.shipped_encoders():
        file = shipped.find_encoder(name)
        assert file.stat().st_size < 15e6
        _, record = read_encoder(name)
        assert not any((record.get("scans") or {}).values()), "made from nobody's scans"
        assert file.with_suffix(".md").is_file()


def test_a_misspelt_model_is_answered_with_the_names_that_are(by_name, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no model .*hand: .*, or name an included one \(head\)\."):
        load_model(nn.Conv3d(1, 2, 3), tmp_path / "hand")
    with pytest.raises(FileNotFoundError, match=r"or output_dir\)\."):
        load_model(nn.Conv3d(1, 2, 3), tmp_path / "model.pt")


def test_show_sums_up_and_prints_all_on_request():
    text = show("synthetic_brain")
    assert len(text.splitlines()) < 12 and text.startswith("synthetic_brain\nnetwork      DynUNetEncoder\n")
    assert "orientation RAS, spacing [2.0, 2.0, 2.0], task structures4, intensity NormalizeForegroundd" in text
    state, record = read_encoder("synthetic_brain")
    numbers = sum(tensor.numel() for tensor in state.values())
    assert f"tensors      {len(state)}, {numbers:,} numbers" in text and "method       SyntheticSegmentation" in text
    whole = show("synthetic_brain", full=True)
    assert json.loads(whole[: whole.index("\n}") + 2]) == record and all(f"\n{name}  (" in whole for name in state)


def test_synthetic_brain_labels_a_brain_of_the_sample(run_bundle, tmp_path):
    """By the command of its page, on another brain of the template that its label maps come from."""
    made = make_subject(0, lesion=False)
    (tmp_path / "scans").mkdir()
    nib.save(nib.Nifti1Image(made["t1_brain"], made["brain_affine"]), tmp_path / "scans/brain.nii.gz")
    workflow = run_bundle(
        "inference.json",
        "tasks/structures4.json",
        "presets/cpu.json",
        bundle="ssl3d",
        workflow_type="inference",
        model_path="synthetic_brain",
        dataset_dir=str(tmp_path / "scans"),
        output_dir=str(tmp_path / "masks"),
    )
    net = workflow.parser.get_parsed_content("segmentation_net")
    assert sum(parameter.numel() for parameter in net.parameters()) == 2_764_869
    [file] = (tmp_path / "masks").rglob("*.nii.gz")
    found, truth = np.asarray(nib.load(file).dataobj), made["structures4"]
    dice = [2 * ((found == n) & (truth == n)).sum() / ((found == n).sum() + (truth == n).sum()) for n in range(1, 5)]
    assert np.mean(dice) > 0.82  # 0.831 in float32
