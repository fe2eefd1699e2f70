from __future__ import annotations

import gzip
import os
import shutil
from pathlib import Path

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
    whole = copies.content_digest
    monkeypatch.setattr(copies, "content_digest", lambda file: read.append(file) or whole(file))
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


def test_a_copy_is_found_packed_unpacked_and_packed_anew(scans, tmp_path):
    packed, anew, parts = (str(tmp_path / name) for name in ("packed.nii.gz", "ANEW.NII.GZ", "parts.nii.gz"))
    content = Path(scans[0]).read_bytes()
    for file, level, mtime in ((packed, 9, 1), (anew, 1, 2)):
        Path(file).write_bytes(gzip.compress(content, level, mtime=mtime))
    assert Path(packed).read_bytes() != Path(anew).read_bytes()
    for training, test in (([scans[0]], [packed]), ([packed], [*scans[1:], scans[0]]), ([packed], [anew])):
        assert [file for file, _ in find_copies(lists(training, test))] == test[-1:]
    # Packed in two parts a file has the checksum of the second; its own copies are found.
    Path(parts).write_bytes(gzip.compress(content[:200_000]) + gzip.compress(content[200_000:]))
    assert copies.content_digest(parts) == copies.content_digest(scans[0])
    shutil.copy(parts, tmp_path / "copy.nii.gz")
    assert [Path(file).name for file, _ in find_copies(lists([parts], [str(tmp_path / "copy.nii.gz")]))] == [
        "copy.nii.gz"
    ]


def test_different_packed_scans_are_not_unpacked(scans, tmp_path, monkeypatch):
    files = []
    for file in scans:
        files.append(str(tmp_path / (Path(file).name + ".gz")))
        Path(files[-1]).write_bytes(gzip.compress(Path(file).read_bytes()))
    monkeypatch.setattr(copies, "content_digest", None)
    assert find_copies(lists(files[:3], files[3:])) == []


def test_a_damaged_file_is_no_copy_and_no_traceback(scans, tmp_path):
    whole = gzip.compress(Path(scans[0]).read_bytes())
    damaged = [str(tmp_path / name) for name in ("a.nii.gz", "b.nii.gz")]
    for file in damaged:
        Path(file).write_bytes(whole[:100] + bytes(100) + whole[200:])
    assert find_copies(lists(damaged[:1], damaged[1:])) == []
