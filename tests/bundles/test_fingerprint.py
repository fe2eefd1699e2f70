"""Inference of every bundle compares scans with those of the training, by the record of the model's file."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch

from common.checkpoint_file import stored_record
from common.checks import first_cause
from common.exported import add_model_record
from common.fingerprint import Fingerprint, FingerprintInTheMaking
from common.weights.model_file import save_model


@pytest.fixture
def trained(cohort, bundle, small_model, tmp_path):
    """A small model of the bundle whose record has the fingerprint of the cohort's training scans."""
    content = json.loads((cohort / "structures4.json").read_text())
    items = [{"image": str(cohort / item["image"])} for item in content["training"]]
    path = tmp_path / "model.pt"
    save_model(torch.load(small_model(bundle), weights_only=True), path, FingerprintInTheMaking(items).record())
    return path, items[0]["image"]


def in_units_of_ct(image, folder):
    """The scan with intensities as CT has them: air of -1000 around soft tissue."""
    scan = nib.load(image)
    values = scan.get_fdata()
    path = folder / "ct.nii.gz"
    nib.save(
        nib.Nifti1Image(np.where(values > 0, values / values.max() * 100, -1000).astype(np.int16), scan.affine), path
    )
    return path


def test_inference_refuses_a_ct_scan_for_a_network_of_mr(bundle, small_files, trained, run_bundle, tmp_path, caplog):
    model, image = trained
    ct = in_units_of_ct(image, tmp_path)

    def run(**values):
        return run_bundle(
            "inference.json", *small_files[bundle], bundle=bundle, workflow_type="inference", device="cpu",
            datalist=str(ct), model_path=str(model), output_dir=str(tmp_path / "out"), **values,
        )  # fmt: skip

    with pytest.raises((ValueError, RuntimeError)) as caught:
        run()
    assert str(first_cause(caught.value)) == (
        f"{ct} is unlike the scans that {model} was trained on: it has intensities as CT has (Hounsfield units), the "
        "training scans are not CT; give scans of that kind, or accept this one with --accept_scans True."
    )
    assert not list(tmp_path.rglob("*_seg*"))
    caplog.clear()  # the engine's own log of the error
    workflow = run(execute=False, accept_scans=True)
    assert workflow.parser.get_parsed_content("dataset")[0]["image"].ndim == 4
    assert caplog.text.count(f"{ct} is unlike the scans") == 1


def test_inference_takes_scans_like_those_of_the_training(bundle, small_files, trained, run_bundle, caplog):
    model, image = trained
    with caplog.at_level("INFO"):
        workflow = run_bundle(
            "inference.json", *small_files[bundle], bundle=bundle, workflow_type="inference", execute=False,
            device="cpu", datalist=image, model_path=str(model),
        )  # fmt: skip
        assert workflow.parser.get_parsed_content("dataset")[0]["image"].ndim == 4
    assert "unlike" not in caplog.text
    assert "does not describe" not in caplog.text


def test_training_writes_the_fingerprint_into_the_model_and_exports_take_it_along(run_bundle, tiny, tmp_path, cohort):
    run_bundle("train.json", tiny["unetr"], output_dir=str(tmp_path), task="structures4", max_epochs=1)
    record = stored_record(tmp_path / "model.pt")
    made = Fingerprint.from_json(record["fingerprint"])
    assert (made.scans, made.among, made.channels, made.modalities) == (3, 3, {1: 3}, {"MR": 3})
    assert made.spacing == ((4.0, 4.0),) * 3
    torch.jit.trace(torch.nn.ReLU(), torch.zeros(1)).save(tmp_path / "model.ts")
    add_model_record(str(tmp_path / "model.pt"), str(tmp_path / "model.ts"))
    assert stored_record(tmp_path / "model.ts") == record


def test_the_fingerprint_samples_large_sets_and_passes_over_what_cannot_be_read(tmp_path, monkeypatch):
    monkeypatch.setattr("common.fingerprint.MOST_SCANS", 3)
    items = [{"image": str(tmp_path / f"{number}.nii.gz")} for number in range(7)]
    for number in (0, 2, 4):
        values = np.random.default_rng(number).uniform(0, 100, (5, 6, 7 + number)).astype(np.float32)
        nib.save(nib.Nifti1Image(values, np.eye(4)), items[number]["image"])
    made = Fingerprint.from_json(FingerprintInTheMaking(items).record()["fingerprint"])
    assert (made.scans, made.among, made.extent[2]) == (3, 7, (7.0, 11.0))
    monkeypatch.setattr("common.fingerprint.MOST_SCANS", 50)
    assert FingerprintInTheMaking(items).record()["fingerprint"] | {"scans": 3} == made.to_json()
    assert FingerprintInTheMaking(items[5:]).record() == {}
