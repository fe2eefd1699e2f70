"""One reading of a header by the check of a datalist, by loading and for the spacing."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from common.data import DatalistError, load_datalist
from common.data.domains import median_spacing
from common.nifti import NiftiError, is_nifti, nifti_affine, read_nifti
from common.transforms import LoadVolumed

SHAPE = (4, 5, 6)
VALUES = np.arange(120, dtype=np.float32).reshape(SHAPE) % 2


def write(path, sizes=(4.0, 3.0, 2.0), sform=1, qform=0, pixdim=None, unit="mm", data=VALUES, matrix=None, first=352):
    """As scanners and tools leave it: fields of the header that do not go together."""
    image = nib.Nifti1Image(data, None)
    image.header.set_xyzt_units(unit)
    image.header.set_sform(np.diag([*sizes, 1]) if matrix is None else matrix, code=sform)
    image.header["qform_code"] = qform
    image.header["pixdim"][1:4] = sizes if pixdim is None else pixdim
    with open(path, "wb") as stream:  # nibabel would mend the header
        image.header.write_to(stream)
        stream.write(np.asarray(data).tobytes(order="F"))
    header = bytearray(path.read_bytes())
    header[108:112] = np.float32(first).tobytes()  # vox_offset
    path.write_bytes(header)
    return str(path)


def check(image, label=None, **options):
    file = image + ".json"
    item = {"image": image} if label is None else {"image": image, "label": label}
    with open(file, "w") as stream:
        json.dump({"training": [item]}, stream)
    return load_datalist(file, label_key=None if label is None else "label", **options)


@pytest.mark.parametrize(
    ("header", "sizes"),
    [
        ({}, (4, 3, 2)),
        ({"pixdim": (1, 1, 1)}, (4, 3, 2)),  # a right sform, sizes left at 1, no valid qform
        ({"pixdim": (0, 0, 0)}, (4, 3, 2)),
        ({"sform": 0, "qform": 1, "pixdim": (1, 2, 3)}, (1, 2, 3)),
        ({"sform": 0, "pixdim": (1, 2, 3)}, (1, 2, 3)),
        ({"sizes": (0.004, 0.003, 0.002), "unit": "meter"}, (4, 3, 2)),
        ({"sizes": (4000, 3000, 2000), "unit": "micron"}, (4, 3, 2)),
        ({"unit": "unknown"}, (4, 3, 2)),
    ],
)
def test_check_spacing_and_loading_read_one_geometry(tmp_path, header, sizes):
    file, plain = write(tmp_path / "scan.nii", **header), write(tmp_path / "plain.nii")
    affine = nifti_affine(file)
    loaded = LoadVolumed("image", ensure_channel_first=True)({"image": file})["image"]
    assert np.allclose(loaded.affine, affine) and np.allclose(loaded.meta["pixdim"][1:4], sizes)
    assert np.allclose(loaded.meta["original_affine"], affine)
    assert np.array_equal(loaded[0], VALUES)
    assert np.allclose(np.linalg.norm(affine[:3, :3], axis=0), sizes)
    assert np.allclose(median_spacing([{"image": file}]), sizes)
    check(file, file, check="full")
    if header.get("sform", 1):
        check(plain, file)
    else:
        with pytest.raises(DatalistError, match="mm away"):
            check(plain, file)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".NII", ".NII.GZ", ".nii.GZ"])
def test_capitals_change_nothing(tmp_path, ending):
    """ITK, which reads what is no NIfTI file, would take the sizes of 3 from pixdim."""
    assert is_nifti(tmp_path / f"scan{ending}")
    content = Path(write(tmp_path / "scan", sizes=(1, 1, 2), pixdim=(3, 3, 3))).read_bytes()
    if ending.lower().endswith(".gz"):
        content = gzip.compress(content)
    file = tmp_path / f"scan{ending}"
    file.write_bytes(content)
    assert np.allclose(median_spacing([{"image": str(file)}]), (1, 1, 2))
    loaded = LoadVolumed("image", ensure_channel_first=True)({"image": str(file)})["image"]
    assert np.allclose(loaded.pixdim, (1, 1, 2)) and np.array_equal(loaded[0], VALUES)
    check(str(file), str(file), check="full")
    bad = tmp_path / f"bad{ending}"
    write(tmp_path / "bad", qform=1, pixdim=(3, 3, 3))
    bad.write_bytes(gzip.compress((tmp_path / "bad").read_bytes()) if ending.lower().endswith(".gz") else b"no volume")
    with pytest.raises(DatalistError, match=rf"\n  {bad}: (has two valid matrices|is not a readable NIfTI file)"):
        check(str(bad))


@pytest.mark.parametrize("name", ["scan.nii.gz", "SCAN.NII.GZ"])
def test_a_checksum_is_compared_whatever_the_case_of_the_name(tmp_path, name):
    packed = bytearray(gzip.compress(Path(write(tmp_path / "scan")).read_bytes()))
    packed[-8] ^= 1
    (tmp_path / name).write_bytes(packed)
    with pytest.raises(NiftiError, match="is damaged"):
        read_nifti(tmp_path / name)


NAN = np.diag([np.nan, 1, 1, 1])


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"qform": 1, "pixdim": (1, 1, 1)}, "two valid matrices .* sform 4x3x2 and qform 1x1x1"),
        ({"unit": "meter"}, "voxels of 4x3x2 metres"),
        ({"unit": "micron"}, r"has voxels of 4x3x2 microns|has voxels of 1x1x1 microns"),
        ({"pixdim": (np.nan, 1, 1)}, "voxel sizes .pixdim. that are not finite"),
        ({"pixdim": (1, np.inf, 1)}, "voxel sizes .pixdim. that are not finite"),
        ({"sform": 0, "qform": 1, "pixdim": (0, 1, 1)}, r"has voxels of 0x1x1 mm \(pixdim\)"),
        ({"sform": 0, "pixdim": (1, 1, 1e-20)}, r"has voxels of 1x1x1e-20 mm \(pixdim\)"),
        ({"matrix": NAN}, r"matrix \(sform\) that is not finite"),
        ({"sizes": (0, 1, 1)}, r"has voxels of 0x1x1 mm \(sform\)"),
        ({"sizes": (1e-20, 1, 1)}, r"has voxels of 1e-20x1x1 mm \(sform\)"),
        ({"matrix": [[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]}, "no inverse"),
        ({"data": np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])}, "holds colours .R/G/B."),
        ({"data": VALUES.astype(np.complex64)}, "holds complex numbers"),
        ({"first": 0}, r"says that its voxels begin at byte 0 \(vox_offset\), which is in the header"),
        ({"data": VALUES[0]}, r"has 2 axes \("),
        ({"data": VALUES[0, 0]}, r"has 1 axes \("),
    ],
)
@pytest.mark.parametrize("mode", ["header", "full"])
def test_what_no_scan_can_be_is_one_sentence(tmp_path, header, message, mode):
    if header.get("unit") == "micron":
        header = {**header, "sizes": (1, 1, 1)}
    file, good = write(tmp_path / "scan.nii", **header), write(tmp_path / "good.nii")
    for pair in ((file,), (good, file)):
        with pytest.raises(DatalistError, match=rf"\n  {file}: .*{message}"):
            check(*pair, check=mode)
    with pytest.raises(RuntimeError, match=f"^{file} .*{message}") as error:
        LoadVolumed("image")({"image": file})
    assert "\n" not in str(error.value)


def test_a_mask_of_channels_is_named(tmp_path):
    image, one = write(tmp_path / "image.nii"), write(tmp_path / "one.nii", data=VALUES[..., None])
    check(image, one, check="full")
    hot = write(tmp_path / "hot.nii", data=np.stack([VALUES, 1 - VALUES], -1))
    check(hot)
    with pytest.raises(DatalistError, match=rf"\n  {hot}: has 2 channels \(4x5x6x2\), but a mask has one"):
        check(image, hot)


def test_a_scan_without_orientation_is_said_once(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("common.nifti._told", [])
    for name in "abc":
        scan = nib.Nifti1Image(np.ones((3, 4, 5), np.int16), np.eye(4))
        scan.set_qform(np.eye(4), 2 if name == "c" else 0)
        scan.set_sform(np.eye(4), 0)
        nib.save(scan, tmp_path / f"{name}.nii")
    nifti_affine(tmp_path / "c.nii")
    assert not caplog.records
    affines = [nifti_affine(tmp_path / f"{name}.nii") for name in "ab"]
    assert affines[0][0, 0] == -1, "the first axis is taken to run to the left"
    [record] = caplog.records
    assert record.getMessage().startswith(f"{tmp_path / 'a.nii'} states no orientation")
