from __future__ import annotations

import os
import shutil

import numpy as np
import pytest

from common.data import copies
from common.data.copies import find_copies


@pytest.fixture
def scans(tmp_path):
    """Five files of one size that differ, the last two by one byte that no sample of them shows."""
    noise = np.random.default_rng(0).integers(0, 255, (5, 300_000), dtype=np.uint8)
    noise[4] = noise[3]
    noise[4, 70_000] ^= 1
    paths = [tmp_path / f"{number}.nii" for number in range(5)]
    for path, values in zip(paths, noise, strict=True):
        path.write_bytes(values.tobytes())
    return [str(path) for path in paths]


def lists(training, test):
    return {"training": [{"image": file} for file in training], "test": [{"image": file} for file in test]}


def test_different_scans_of_one_size_are_no_copies(scans, monkeypatch):
    read = []
    whole = copies._whole
    monkeypatch.setattr(copies, "_whole", lambda file: read.append(file) or whole(file))
    assert find_copies(lists(scans[:3], scans[3:])) == [] and read == []
    assert find_copies(lists(scans[:4], scans[4:])) == [] and sorted(read) == scans[3:]


def test_a_copy_under_another_name_is_found(scans, tmp_path):
    other = str(tmp_path / "patient_17.nii")
    shutil.copy(scans[1], other)
    ((file, text),) = find_copies(lists(scans[:3], [scans[4], other]))
    assert file == other and f"in test is a copy of {scans[1]} in training" in text
    assert find_copies(lists([*scans[:3], other], scans[3:])) == []  # both in one list
    several = {"training": [{"image": [scans[0], scans[1]]}], "test": [{"image": [scans[2], other]}]}
    assert [file for file, _ in find_copies(several)] == [other]  # contrasts in files of their own


def test_links_small_files_and_missing_ones_are_passed_over(scans, tmp_path):
    os.symlink(scans[0], tmp_path / "link.nii")  # is found as a link
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"0" * 4000)
    test = [str(tmp_path / name) for name in ("link.nii", "b", "missing.nii", "")]
    assert find_copies(lists([scans[0], str(tmp_path / "a"), "missing.nii"], test)) == []
