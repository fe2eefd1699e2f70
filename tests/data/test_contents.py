"""The content of a datalist's files, whatever they are called and wherever they lie."""

from __future__ import annotations

import gzip
import json
import os
import shutil

import pytest

from common.data import contents
from common.data.contents import contents_digest


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own, and a process that has read nothing; returns the files that are read completely."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(contents, "_known", {})
    read, whole_key = [], contents.whole_key
    monkeypatch.setattr(contents, "whole_key", lambda file: read.append(os.path.basename(file)) or whole_key(file))
    return read


@pytest.fixture
def data(tmp_path):
    """A packed scan with a small mask, and one that is not packed."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.nii.gz").write_bytes(gzip.compress(bytes(range(256)) * 100))
    (folder / "mask.nii.gz").write_bytes(gzip.compress(b"\1\2" * 50))
    (folder / "b.nii").write_bytes(os.urandom(contents.KEPT))
    return folder


def items(folder):
    scan = {"image": str(folder / "a.nii.gz"), "label": str(folder / "mask.nii.gz"), "subject": "data", "age": 4}
    return [scan, {"image": [str(folder / "b.nii")], "label": 1}]


def test_the_working_folder_does_not_count(data, monkeypatch):
    """A subject may be called as a file is below it."""
    found = []
    for folder in (data, data.parent):
        monkeypatch.chdir(folder)
        found.append(contents_digest([{**items(data)[0], "subject": "data/a.nii.gz"}]))
    assert found[0] == found[1]


def test_the_place_does_not_count(data, tmp_path):
    before = contents_digest(items(data))
    shutil.copytree(data, tmp_path / "copy")
    assert contents_digest(items(tmp_path / "copy")) == before
    assert contents_digest(items(data)[:1]) != before != contents_digest(items(data)[::-1])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.nii.gz", gzip.compress(bytes(range(1, 256)) * 100)),
        ("mask.nii.gz", gzip.compress(b"\2\1" * 50)),
        ("b.nii", bytes(contents.KEPT)),
    ],
    ids=["scan", "mask", "unpacked"],
)
def test_what_the_files_hold_counts(data, name, content):
    before, size = contents_digest(items(data)), (data / name).stat().st_size
    (data / name).write_bytes(content)
    os.utime(data / name, ns=(1, 1))  # as a copy that keeps the times would leave it, with the same size
    assert (data / name).stat().st_size == size or name.startswith("a")
    assert contents_digest(items(data)) != before


def test_packed_or_not_is_the_same(data):
    before = contents_digest(items(data))
    (data / "a.nii").write_bytes(gzip.decompress((data / "a.nii.gz").read_bytes()))
    unpacked = items(data)
    unpacked[0]["image"] = str(data / "a.nii")
    assert contents_digest(unpacked) == before


def test_the_first_part_of_a_file_of_several_counts(data):
    """Block compression ends each file with the same empty part."""
    parts = [gzip.compress(os.urandom(5000)) for _ in range(2)]
    found = []
    for part in parts:
        (data / "a.nii.gz").write_bytes(part + gzip.compress(b""))
        found.append(contents_digest(items(data)[:1]))
    (data / "a.nii.gz").write_bytes(parts[-1])
    assert found[0] != found[1] == contents_digest(items(data)[:1])


def test_a_series_is_one_scan(data):
    folder = data / "series"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.dcm").write_bytes(bytes([number]) * 200)
    item = [{"image": str(folder)}]
    before = contents_digest(item)
    (folder / "1.dcm").write_bytes(b"x" * 200)
    assert contents_digest(item) != before


def test_files_are_read_once(data, cache, monkeypatch):
    first = contents_digest(items(data))
    assert sorted(cache) == ["a.nii.gz", "b.nii", "mask.nii.gz"]
    assert contents_digest(items(data)) == first and len(cache) == 3
    monkeypatch.setattr(contents, "_known", {})  # as in another process
    assert contents_digest(items(data)) == first and "b.nii" not in cache[3:]
    (data / "b.nii").write_bytes(b"x" * contents.KEPT)
    assert contents_digest(items(data)) != first and "b.nii" in cache[3:]


def test_a_long_reading_is_said_beforehand(data, monkeypatch, caplog):
    monkeypatch.setattr(contents, "LONG", contents.KEPT)
    contents_digest(items(data)[:1])  # of a packed scan only the end is read
    assert not caplog.messages
    contents_digest(items(data))
    assert caplog.messages == ["Reading 0.0 GB of scans once, to notice later if they change."]
    contents_digest(items(data))
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"x": 1})])
def test_a_damaged_cache_is_no_harm(data, tmp_path, text):
    path = tmp_path / "cache/monai-transfer-bundles/contents.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    contents_digest(items(data))
    assert str(data / "b.nii") in json.loads(path.read_text())


def test_a_damaged_file_is_left_to_the_check(data):
    (data / "a.nii.gz").write_bytes(b"\x1f\x8b" + b"x" * 40)
    damaged = contents_digest(items(data))
    (data / "a.nii.gz").write_bytes(b"\x1f\x8b" + b"y" * 40)
    assert contents_digest(items(data)) != damaged
