from __future__ import annotations

import types

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from common.checkpoint_file import save_checkpoint, stored_record
from common.fingerprint import Fingerprint, facts_of_volume
from common.transforms import CheckScand


def scan(offset=0.0, spacing=1.0):
    values = torch.rand(1, 8, 9, 10, generator=torch.Generator().manual_seed(0)) * 100 + offset
    return MetaTensor(values, affine=np.diag([1.0, 1.0, spacing, 1.0]), meta={"filename_or_obj": "scan.nii.gz"})


def record():
    return {"fingerprint": Fingerprint.of([facts_of_volume(scan(), "a")]).to_json()}


@pytest.mark.parametrize("name", ["model.pt", "model.ts"])
def test_the_record_of_the_models_file_is_compared(tmp_path, name):
    save_checkpoint({"weight": torch.zeros(2)}, tmp_path / name, record())
    check = CheckScand("image", str(tmp_path / "model.pt"))
    assert check({"image": scan()})["image"].shape == (1, 8, 9, 10)
    with pytest.raises(ValueError, match=r"scan.nii.gz is unlike .*model.pt .*Hounsfield.*--accept_scans True"):
        check({"image": scan(-500)})


def test_mild_differences_and_accepted_ones_are_warned_of(caplog):
    net = types.SimpleNamespace(record=record())  # as OnnxNet
    CheckScand("image", net)({"image": scan(spacing=2.0)})
    assert "scan.nii.gz is unlike" in caplog.text
    assert "voxels of 2 mm (up-down)" in caplog.text
    CheckScand("image", net, accepted=True)({"image": scan(-500)})
    assert "Hounsfield" in caplog.text


@pytest.mark.parametrize("there", [True, False])
def test_a_model_without_a_fingerprint_is_taken_and_that_is_said_once(tmp_path, caplog, there):
    path = tmp_path / "model.pt"
    if there:
        torch.save({"weight": torch.zeros(2)}, path)
        assert stored_record(path) == {}
    check = CheckScand("image", path)
    with caplog.at_level("INFO"):
        for _ in range(3):
            check({"image": scan(-500)})
    assert caplog.text.count(f"{path} does not describe the scans that it was trained on") == 1


def test_a_damaged_record_is_no_silent_pass(tmp_path):
    path = tmp_path / "model.pt"
    save_checkpoint({"weight": torch.zeros(2)}, path, {"fingerprint": {"format": 1}})
    with pytest.raises(ValueError, match="fingerprint of the training scans is damaged"):
        CheckScand("image", path)({"image": scan()})
