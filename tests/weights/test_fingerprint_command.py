"""``python -m common.weights fingerprint``: files that do not say what scans they are for are told it."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import LoadImage

from common.checkpoint_file import read_checkpoint, save_checkpoint
from common.transforms import CheckScand
from common.weights import read_encoder
from common.weights.__main__ import fingerprint
from common.weights.encoder_file import write_state


@pytest.fixture
def scans(tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(3):
        voxels = draw.integers(0, 255, (12, 14, 10)).astype(np.int16)
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), folder / f"{number}.nii.gz")
    return folder


@pytest.mark.parametrize("kind", ["model.pt", "net.safetensors"])
def test_a_ct_is_refused_once_the_file_says_what_it_is_for(tmp_path, scans, kind):
    state, record, path, told = (
        {"weight": torch.ones(3)},
        {"preparation": {}},
        tmp_path / kind,
        tmp_path / f"new_{kind}",
    )
    write = save_checkpoint if kind == "model.pt" else write_state
    write(state, path, record)
    ct = LoadImage(ensure_channel_first=True)(scans / "0.nii.gz") - 500
    mr = LoadImage(ensure_channel_first=True)(scans / "1.nii.gz")
    CheckScand("image", path)({"image": ct})  # nothing is known

    assert "the 3 that were read" in fingerprint(str(path), str(scans), str(told))
    CheckScand("image", told)({"image": mr})
    with pytest.raises(ValueError, match=rf"unlike the scans that .*new_{kind} was trained on.*Hounsfield"):
        CheckScand("image", told)({"image": ct})
    kept, its_record = read_checkpoint(told) if kind == "model.pt" else read_encoder(told)
    assert torch.equal(kept["weight"], state["weight"])
    assert its_record["preparation"] == {}
    with pytest.raises(ValueError, match="has a fingerprint of the scans"):
        fingerprint(str(told), str(scans), str(path))


def test_without_a_scan_that_can_be_read_nothing_is_written(tmp_path, scans):
    save_checkpoint({"weight": torch.ones(3)}, tmp_path / "model.pt", {})
    for file in scans.iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"none of the 3 scans in .* can be read"):
        fingerprint(str(tmp_path / "model.pt"), str(scans), str(tmp_path / "new.pt"))
    assert not (tmp_path / "new.pt").exists()
