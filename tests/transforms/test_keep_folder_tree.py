from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import SaveImage

from common.transforms import KeepFolderTree


@pytest.mark.parametrize(
    ("image", "root", "expected"),
    [
        ("data/t1.nii.gz", "data", "t1_seg.nii.gz"),
        ("data/sub-01/anat/t1.nii.gz", "data", "sub-01/anat/t1_seg.nii.gz"),
        ("data/sub-01/t1.nii.gz", "data/sub-01/t1.nii.gz", "t1_seg.nii.gz"),
        ("elsewhere/t1.nii.gz", "data", "t1_seg.nii.gz"),
        ("data2/t1.nii.gz", "data", "t1_seg.nii.gz"),
        ("data/t1.v2.mha", "data", "t1.v2_seg.nii.gz"),
    ],
)
def test_lies_as_the_image_lies(tmp_path, monkeypatch, image, root, expected):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    for start in ("", f"{tmp_path}/"):  # relative and absolute names mean the same
        layout = KeepFolderTree(out, start + root, "seg")
        assert Path(layout.filename(str(tmp_path / image))) == out / expected
    assert (out / expected).parent.is_dir()


def test_saves_through_monai(tmp_path):
    layout = KeepFolderTree(tmp_path / "out", tmp_path / "data", "seg")
    save = SaveImage(folder_layout=layout, print_log=False)
    for subject in ("a", "b"):
        save(MetaTensor(torch.ones(1, 4, 4, 4), meta={"filename_or_obj": str(tmp_path / f"data/{subject}/t1.nii.gz")}))
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.nii.gz"))
    assert found == ["out/a/t1_seg.nii.gz", "out/b/t1_seg.nii.gz"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("elsewhere/a/t1.nii.gz", "elsewhere/b/t1.nii.gz"),
        ("data/t1.nii.gz", "t1.nii.gz"),
        ("data/t1.nii", "data/t1.mha"),
    ],
)
def test_one_output_for_two_images_is_refused(tmp_path, first, second):
    layout = KeepFolderTree(tmp_path / "out", tmp_path / "data", "seg")
    names = [layout.filename(tmp_path / first, idx=i) for i in (None, None, 0)]
    assert names[0] == names[1] != names[2]  # the same image may come again
    with pytest.raises(ValueError, match=rf"{tmp_path / first} and {tmp_path / second} would both .*`dataset_dir`"):
        layout.filename(tmp_path / second)
