from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from common.data import list_images
from common.transforms import KeepFolderTree


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "deeper").mkdir()
    for name in ("b.nii.gz", "a.nii", "deeper/c.nii.gz"):
        nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.float32), np.eye(4)), tmp_path / name)
    (tmp_path / "d.MHA").write_text("")
    (tmp_path / "notes.txt").write_text("")
    return tmp_path


def paths(folder, *names):
    return [{"image": str(folder / name)} for name in names]


def test_a_folder(folder):
    assert list_images(folder) == paths(folder, "a.nii", "b.nii.gz", "d.MHA")


def test_a_file(folder):
    assert list_images(str(folder / "b.nii.gz")) == paths(folder, "b.nii.gz")


def test_label_maps_beside_their_images_are_passed_over(folder, caplog):
    for name in ("b_seg.nii.gz", "d_seg.nii.gz", "x_seg.nii.gz", "a_seg_seg.nii"):
        nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)), folder / name)
    with caplog.at_level("INFO"):
        # x has no image beside it, so that x_seg is the name of a scan; so has a_seg.
        found = paths(folder, "a.nii", "a_seg_seg.nii", "b.nii.gz", "d.MHA", "x_seg.nii.gz")
        assert list_images(folder) == found
    assert "2 files" in caplog.text and "b_seg.nii.gz" in caplog.text
    assert list_images(folder / "b_seg.nii.gz") == paths(folder, "b_seg.nii.gz")


def test_label_maps_beside_dicom_series_are_passed_over(tmp_path, write_series, caplog):
    """Those of a second run, as `KeepFolderTree` names them."""
    series = [tmp_path / "patient1", tmp_path / "1.2.840.7"]
    layouts = [KeepFolderTree(tmp_path, tmp_path, "seg", extension) for extension in (".nii.gz", ".dcm")]
    for folder in series:
        write_series(folder, np.zeros((3, 4, 2)), np.eye(4))
        nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)), layouts[0].filename(folder))
    found = paths(tmp_path, "1.2.840.7", "patient1")
    with caplog.at_level("INFO"):
        assert list_images(tmp_path) == found
    assert "2 files" in caplog.text
    for folder in series:
        Path(layouts[1].filename(folder)).write_bytes(b"a DICOM SEG")
    assert list_images(tmp_path) == found
    (tmp_path / "slice.dcm").write_bytes(b"of a series in the folder itself")
    assert list_images(tmp_path) == [*found, {"image": str(tmp_path)}]


def test_a_label_map_inside_a_series_is_passed_over(tmp_path, write_series):
    folder = tmp_path / "patient1"
    write_series(folder, np.zeros((3, 4, 2)), np.eye(4))
    output = KeepFolderTree(folder, folder, "seg").filename(folder)
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)), output)
    assert list_images(folder) == [{"image": str(folder)}]


def write_list(path, **lists):
    path.write_text(json.dumps(lists))
    return path


@pytest.mark.parametrize("section", ["test", "validation"])
def test_a_datalist(folder, section):
    items = [{"image": "b.nii.gz", "label": "not_there.nii.gz", "age": 40}, {"image": "deeper/c.nii.gz"}]
    path = write_list(folder / "list.json", **{section: items, "training": [{"image": "a.nii"}]})
    assert list_images(path, section=section) == paths(folder, "b.nii.gz", "deeper/c.nii.gz")


def test_a_datalist_elsewhere(folder, tmp_path_factory):
    path = write_list(tmp_path_factory.mktemp("lists") / "list.json", test=[{"image": "a.nii"}])
    assert list_images(path, base_dir=folder) == paths(folder, "a.nii")


def test_an_empty_section(folder):
    path = write_list(folder / "list.json", training=[{"image": "a.nii"}])
    with pytest.raises(ValueError, match=f"the list 'test' of {path} is empty; name another with data#section"):
        list_images(path)


def test_nothing_there(folder, tmp_path_factory):
    with pytest.raises(FileNotFoundError, match=r"no such file or folder: .*not_there; set dataset_dir"):
        list_images(folder / "not_there")
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(ValueError, match=f"no image .* in {empty}; set dataset_dir to a folder of images"):
        list_images(empty)


def test_images_in_folders_below_are_pointed_at(folder):
    for name in ("a.nii", "b.nii.gz", "d.MHA"):
        (folder / name).unlink()
    with pytest.raises(ValueError, match=f"in {folder} itself, and folders in it are not searched") as error:
        list_images(folder)
    text = str(error.value)
    assert "deeper/c.nii.gz" in text and "list 'test'" in text and "--datalist FILE.json" in text and "\n" not in text
    path = write_list(folder / "list.json", test=[{"image": "deeper/c.nii.gz"}])
    assert list_images(path, base_dir=folder) == paths(folder, "deeper/c.nii.gz")


def test_names_that_begin_with_a_dot_are_left_out(folder):
    (folder / "._a.nii.gz").write_bytes(b"no scan")
    assert list_images(folder) == paths(folder, "a.nii", "b.nii.gz", "d.MHA")
