from __future__ import annotations

import copy
import gzip
import os
import pickle
import warnings
import zlib

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import LoadImaged

from common.transforms import LoadVolumed


@pytest.fixture
def scan(tmp_path):
    path = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random((12, 13, 14), np.float32), np.diag([1, 2, 3, 1])), path)
    return path


def test_a_good_file_loads_as_with_monai(scan):
    ours = LoadVolumed("image", ensure_channel_first=True)({"image": str(scan), "age": 3})
    stock = LoadImaged("image", ensure_channel_first=True)({"image": str(scan), "age": 3})
    assert torch.equal(ours["image"], stock["image"]) and ours["image"].shape == (1, 12, 13, 14) and ours["age"] == 3
    assert ours["image"].meta["filename_or_obj"] == str(scan)


def compressed_mha(path, big_endian=False, wbits=15):
    """A compressed MetaImage file as others write them, and its voxels."""
    voxels = np.random.default_rng(0).integers(0, 900, (6, 5, 4)).astype(np.int16)
    pack = zlib.compressobj(wbits=wbits)
    packed = pack.compress(voxels.astype(">i2" if big_endian else "<i2").tobytes()) + pack.flush()
    lines = ["ObjectType = Image", "NDims = 3", "BinaryData = True", f"BinaryDataByteOrderMSB = {big_endian}"]
    lines += ["CompressedData = True", f"CompressedDataSize = {len(packed)}", "TransformMatrix = 1 0 0 0 1 0 0 0 1"]
    lines += ["DimSize = 4 5 6", "ElementType = MET_SHORT", "ElementDataFile = LOCAL", ""]
    path.write_bytes("\n".join(lines).encode() + packed)
    return voxels.T


@pytest.mark.parametrize("kind", [{}, {"big_endian": True}, {"wbits": 31}])
def test_compressed_metaimage_files_are_unpacked_once(tmp_path, monkeypatch, kind):
    """By ITK; they are unpacked again only where the checksum is not that of what it made of them."""
    pytest.importorskip("itk")
    path = tmp_path / "scan.mha"
    voxels = compressed_mha(path, **kind)
    load = LoadVolumed("image", ensure_channel_first=True)
    with monkeypatch.context() as patched:
        patched.setattr(zlib, "decompressobj", lambda *_, **__: pytest.fail("unpacked a second time"))
        image = load({"image": str(path)})["image"]
    assert np.array_equal(image[0].numpy(), voxels)
    whole = path.read_bytes()
    for place in (-1, -40):  # the checksum, and a voxel
        data = bytearray(whole)
        data[place - 4 * ("wbits" in kind)] ^= 16
        path.write_bytes(data)
        with pytest.raises(RuntimeError, match=f"{path} is damaged"):
            load({"image": str(path)})


def compressed_nrrd(path, endian="little", skip=0, detached=False):
    """A compressed NRRD file as others write them; its voxels, the file with them, and where they begin."""
    voxels = np.random.default_rng(0).integers(0, 900, (6, 5, 4)).astype(np.int16)
    packed = gzip.compress(bytes(skip) + voxels.astype("<i2" if endian == "little" else ">i2").tobytes(), mtime=0)
    lines = ["NRRD0004", "# a comment", "type: short", "dimension: 3", "sizes: 4 5 6", "space: left-posterior-superior"]
    lines += ["space directions: (1,0,0) (0,1,0) (0,0,1)", "space origin: (0,0,0)", "who:=encoding: raw"]
    lines += [f"endian: {endian}", "encoding: gzip", *([f"byte skip: {skip}"] if skip else [])]
    if detached:
        path.write_text("\n".join([*lines, "data file: voxels.gz", ""]))
        (path.parent / "voxels.gz").write_bytes(packed)
        return voxels.T, path.parent / "voxels.gz", 0
    header = "\n".join([*lines, "", ""]).encode()
    path.write_bytes(header + packed)
    return voxels.T, path, len(header)


@pytest.mark.parametrize("kind", [{}, {"endian": "big"}, {"skip": 6}, {"detached": True}])
def test_no_damaged_byte_of_a_compressed_nrrd_file_gets_by(tmp_path, monkeypatch, kind):
    pytest.importorskip("itk")
    path = tmp_path / ("scan.nhdr" if "detached" in kind else "scan.nrrd")
    voxels, file, start = compressed_nrrd(path, **kind)
    load = LoadVolumed("image", ensure_channel_first=True)
    with monkeypatch.context() as patched:
        if "skip" not in kind:
            patched.setattr(zlib, "decompressobj", lambda *_, **__: pytest.fail("unpacked a second time"))
        assert np.array_equal(load({"image": str(path)})["image"][0].numpy(), voxels)
    whole = file.read_bytes()
    refused = 0
    for place in range(start + 10, len(whole), 3):  # behind gzip's header, of which most says nothing about the voxels
        data = bytearray(whole)
        data[place] ^= 16
        file.write_bytes(data)
        try:
            assert np.array_equal(load({"image": str(path)})["image"][0].numpy(), voxels), place
        except RuntimeError as error:
            refused += 1
            assert f"{path} is damaged" in str(error), place
    assert refused > (len(whole) - start - 10) / 4


def test_a_decoder_that_nobody_asked_for_is_not_missed_aloud():
    pytest.importorskip("pydicom", reason="MONAI warns where pydicom is installed")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        LoadVolumed("image")


def test_an_empty_path_is_not_the_working_folder(tmp_path, monkeypatch):
    """It is what MONAI Label gives for a study that it does not have."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="asked for does not exist: MONAI Label has no such study"):
        LoadVolumed("image")({"image": ""})


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    """Behind what is compressed: nothing but the checksum tells."""
    data = bytearray(path.read_bytes())
    data[-8] ^= 1
    path.write_bytes(data)


def zeros(path):
    path.write_bytes(b"\0" * 1000)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: p.unlink(), "does not exist"),
        (lambda p: p.write_bytes(b""), r"is empty \(0 bytes\)"),
        (flip, r"is damaged \(checksum"),
        (truncate, "cannot be read .*end-of-stream"),
        (lambda p: p.write_text("no scan"), "cannot be read"),
        (zeros, "cannot be read"),
    ],
)
@pytest.mark.parametrize("key", ["image", "label"])
@pytest.mark.parametrize("make", [lambda t: t, copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))])
def test_one_sentence_names_the_file(scan, tmp_path, spoil, message, key, make):
    good = tmp_path / "good.nii.gz"
    good.write_bytes(scan.read_bytes())
    spoil(scan)
    data = {"image": str(good), "label": str(good), key: str(scan)}
    with pytest.raises(RuntimeError, match=message) as error:
        make(LoadVolumed(["image", "label"]))(data)
    text = str(error.value)
    assert text.startswith(str(scan)) and "\n" not in text and "take it out of the datalist" in text


def test_modalities_of_different_shapes_are_named(scan, tmp_path):
    other = tmp_path / "other.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5), np.float32), np.eye(4)), other)
    with pytest.raises(RuntimeError, match=r"scan.nii.gz, .*other.nii.gz cannot be read as one image"):
        LoadVolumed("image")({"image": [str(scan), str(other)]})
    other.unlink()
    with pytest.raises(RuntimeError, match=r"^\S*other.nii.gz does not exist"):
        LoadVolumed("image")({"image": [str(scan), str(other)]})


def test_a_missing_key_is_monais_own_error(scan):
    with pytest.raises(KeyError, match="label"):
        LoadVolumed(["image", "label"])({"image": str(scan)})
    assert "label" not in LoadVolumed(["image", "label"], allow_missing_keys=True)({"image": str(scan)})


def test_a_decoder_that_is_not_needed_is_not_spoken_of(caplog):
    LoadVolumed("image")
    assert not caplog.records
