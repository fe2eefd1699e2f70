from __future__ import annotations

import errno
import math
import os
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import SaveImage

from common.nifti import nifti_affine
from common.transforms import KeepFolderTree, LoadVolumed, SaveVolumed


@pytest.fixture
def label():
    affine = torch.tensor([[0, -2.0, 0, 5], [1.5, 0, 0, -7], [0, 0, 3.0, 2], [0, 0, 0, 1]], dtype=torch.float64)
    values = torch.arange(4 * 5 * 6).view(1, 4, 5, 6) % 7
    return MetaTensor(values.float(), affine=affine, meta={"filename_or_obj": "/scans/case.nii.gz"})


def save(folder, extension=".nii.gz", **arguments):
    return SaveVolumed("pred", KeepFolderTree(folder, "/scans", "seg", extension), **arguments)


def saved(folder, values, **arguments):
    """Type and values of the file of a volume with these voxels."""
    meta = {"filename_or_obj": "/scans/case.nii.gz"}
    volume = MetaTensor(torch.as_tensor(values).reshape(1, 1, 2, 2), affine=torch.eye(4), meta=meta)
    save(folder, **arguments)({"pred": volume})
    file = nib.load(folder / "case_seg.nii.gz")
    return str(file.get_data_dtype()), np.asarray(file.dataobj).reshape(-1).tolist()


@pytest.mark.parametrize("extension", [".nii.gz", ".nii"])
def test_the_file_is_monais(tmp_path, label, extension):
    item = {"pred": label, "other": 3}
    assert save(tmp_path / "ours", extension)(item) == item
    layout = KeepFolderTree(tmp_path / "monai", "/scans", "seg", extension)
    SaveImage(folder_layout=layout, output_dtype=torch.uint8, resample=False, print_log=False)(label)
    ours, theirs = (nib.load(tmp_path / name / f"case_seg{extension}") for name in ("ours", "monai"))
    np.testing.assert_array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))
    np.testing.assert_array_equal(np.asarray(ours.dataobj), label[0].numpy())
    assert ours.header == theirs.header and ours.get_data_dtype() == np.uint8
    assert [path.name for path in (tmp_path / "ours").iterdir()] == [f"case_seg{extension}"]


@pytest.mark.parametrize(
    ("values", "dtype", "stored"),
    [
        ([0, 5, 255, 7], torch.int16, "uint8"),
        ([0, 5, 255, 7], torch.int64, "uint8"),
        ([0, 1, 1, 0], torch.bool, "uint8"),
        ([0, 5, 256, 300], torch.int16, "int16"),
        ([0, 5, -1, 3], torch.int16, "int16"),
        ([0, 5, 256, 70000], torch.int64, "int32"),
        ([0, 0.25, 0.5, 2], torch.float32, "float32"),
        ([0, 0.25, 0.5, 2], torch.float16, "float32"),
        ([0, 0.25, math.inf, 2], torch.float64, "float64"),
    ],
)
def test_every_value_is_stored(tmp_path, values, dtype, stored):
    assert saved(tmp_path, torch.tensor(values, dtype=dtype)) == (stored, values)


@pytest.mark.parametrize("asked", [np.uint8, torch.uint8, "uint8"])
def test_a_type_that_cannot_hold_the_values_is_refused(tmp_path, asked):
    assert saved(tmp_path, [0.0, 1, 2, 255], output_dtype=asked) == ("uint8", [0, 1, 2, 255])
    (tmp_path / "case_seg.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"case_seg.nii.gz cannot hold 256, 300 as uint8: set output_dtype to a type"):
        saved(tmp_path, [0, 5, 256, 300], output_dtype=asked)
    with pytest.raises(ValueError, match=r"cannot hold 0.5 as uint8"):
        saved(tmp_path, [0, 0.5, 1, 2], output_dtype=asked)
    assert not os.listdir(tmp_path)


def test_an_asked_float_may_round_but_not_overflow(tmp_path):
    assert saved(tmp_path, [0.1, math.nan, 0.5, 1], output_dtype=np.float64)[0] == "float64"
    third = torch.tensor([1 / 3, 0, 0, 0], dtype=torch.float64)
    assert saved(tmp_path, third, output_dtype=np.float32) == ("float32", [float(np.float32(1 / 3)), 0, 0, 0])
    with pytest.raises(ValueError, match=r"cannot hold 1e\+300 as float32"):
        saved(tmp_path, third * 3e300, output_dtype=np.float32)
    with pytest.raises(ValueError, match=r"cannot hold 16777217 as float32"):  # a label that would become another
        saved(tmp_path, [0, 1, 2, 2**24 + 1], output_dtype=np.float32)


def test_a_full_disk_ends_with_the_files_name_and_leaves_nothing(tmp_path, label, monkeypatch):
    path = tmp_path / "case_seg.nii.gz"
    path.write_bytes(b"old")

    def full(image, name):
        Path(name).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(nib, "save", full)
    with pytest.raises(OSError, match=f"{path} could not be written .No space left") as caught:
        save(tmp_path)({"pred": label})
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == [path.name]


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files")
def test_a_limit_of_the_system_is_a_full_disk_too(tmp_path):
    import resource

    noise = torch.randint(255, (1, 40, 40, 40)).float()
    volume = MetaTensor(noise, meta={"filename_or_obj": "/scans/case.nii.gz"})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # Python ignores the signal that comes with it
    try:
        with pytest.raises(OSError, match=r"case_seg\.nii\.gz could not be written") as caught:
            save(tmp_path)({"pred": volume})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert not list(tmp_path.rglob("*seg*"))


@pytest.mark.parametrize("extension", [".NII.GZ", ".NII"])
def test_an_extension_may_be_in_capitals(tmp_path, label, extension):
    save(tmp_path, extension)({"pred": label})
    assert os.listdir(tmp_path) == [f"case_seg{extension}"]
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / f"case_seg{extension}").dataobj), label[0].numpy())


def test_other_formats_are_refused(tmp_path, label):
    with pytest.raises(ValueError, match="not a NIfTI path"):
        save(tmp_path, ".png")({"pred": label})


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
@pytest.mark.parametrize("codes", [(4, 1), (0, 2), (2, 0), (0, 0)])
@pytest.mark.parametrize("unit", ["mm", "meter"])
def test_a_map_has_the_place_of_its_scan_for_every_program(tmp_path, codes, unit, ending):
    """Some programs believe the sform, others the qform: both are those of the scan, with their codes."""
    size = 1.0 if unit == "mm" else 0.001
    scan = nib.Nifti1Image(np.arange(120, dtype=np.int16).reshape(4, 5, 6), np.eye(4))
    turned = np.array([[0, -2.0, 0, 5], [2.0, 0, 0, -7], [0, 0, 2.0, 2], [0, 0, 0, 1]])
    turned[:3] *= size
    scan.set_qform(np.diag([2.0 * size, 2.0 * size, 2.0 * size, 1]), codes[1])
    scan.set_sform(turned, codes[0])
    scan.header.set_xyzt_units(unit)
    nib.save(scan, tmp_path / "scan.nii.gz")
    volume = LoadVolumed("pred", ensure_channel_first=True)({"pred": str(tmp_path / "scan.nii.gz")})["pred"]
    SaveVolumed("pred", KeepFolderTree(tmp_path, str(tmp_path), "seg", ending))({"pred": volume})
    scan, written = nib.load(tmp_path / "scan.nii.gz"), nib.load(tmp_path / f"scan_seg{ending}")
    for name in ("sform", "qform"):
        ours, theirs = (getattr(file, f"get_{name}")(coded=True) for file in (written, scan))
        assert ours[1] == theirs[1]
        assert ours[0] is theirs[0] is None or np.array_equal(ours[0], theirs[0])
    assert written.header.get_xyzt_units()[0] == unit
    np.testing.assert_array_equal(nifti_affine(tmp_path / f"scan_seg{ending}"), nifti_affine(tmp_path / "scan.nii.gz"))
    np.testing.assert_array_equal(np.asarray(written.dataobj), np.asarray(scan.dataobj))

    volume.affine[:3, :3] *= 2  # on a grid of its own: where it says that it is
    SaveVolumed("pred", KeepFolderTree(tmp_path, str(tmp_path), "other", ending))({"pred": volume})
    other = nib.load(tmp_path / f"scan_other{ending}")
    np.testing.assert_allclose(other.get_sform(), volume.affine.numpy())
    np.testing.assert_allclose(other.get_qform(), volume.affine.numpy(), atol=1e-6)
