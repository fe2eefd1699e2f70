from __future__ import annotations

import argparse
import io
import os
import pickle
import stat
import zipfile

import pytest
import torch

from common.checkpoint_file import read_checkpoint, save_checkpoint


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_content_and_mode(tmp_path, umask, mode):
    path = tmp_path / "new" / "a.pt"
    before = os.umask(umask)
    try:
        save_checkpoint({"a": torch.arange(3)}, path)
    finally:
        os.umask(before)
    assert torch.load(path, weights_only=True)["a"].tolist() == [0, 1, 2]
    assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.parametrize("failing", ["save", "fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, failing):
    path = tmp_path / "a.pt"
    save_checkpoint({"a": torch.arange(3)}, path)
    before = path.read_bytes()

    def fail(*args, **kwargs):
        if failing == "save":
            args[1].write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch if failing == "save" else os, failing, fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint({"a": torch.arange(4)}, path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.pt"]


def test_the_record_comes_back_and_torch_reads_the_rest(tmp_path):
    path = tmp_path / "a.pt"
    save_checkpoint({"a": torch.arange(3)}, path, {"spacing": [1.0, 2.0, 3.0]})
    content, record = read_checkpoint(path)
    assert content["a"].tolist() == [0, 1, 2] and record == {"spacing": [1.0, 2.0, 3.0]}
    assert torch.load(path, weights_only=True, mmap=True)["a"].tolist() == [0, 1, 2]


def test_a_file_of_another_program_has_an_empty_record(tmp_path):
    for name, zipped in (("new.pt", True), ("old.pt", False)):
        torch.save({"a": 1}, tmp_path / name, _use_new_zipfile_serialization=zipped)
        assert read_checkpoint(tmp_path / name) == ({"a": 1}, {})


@pytest.mark.parametrize("save", [save_checkpoint, torch.save])
def test_any_flipped_bit_of_the_weights_is_found(tmp_path, save):
    path = tmp_path / "a.pt"
    save({"a": torch.full((512,), 0.3)}, path)
    whole = path.read_bytes()
    start = whole.index(torch.full((512,), 0.3).numpy().tobytes())
    for place in range(start, start + 2048, 97):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.pt is not a readable checkpoint .*checksum"):
            read_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"<html>", b"PK\x03\x04 cut off"])
def test_what_is_no_checkpoint_is_named(tmp_path, content):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.pt is not a readable checkpoint"):
        read_checkpoint(tmp_path / "a.pt")
    with pytest.raises(FileNotFoundError, match=r"b\.pt"):
        read_checkpoint(tmp_path / "b.pt")


@pytest.mark.parametrize("save", [save_checkpoint, torch.save])
def test_a_flipped_bit_anywhere_changes_nothing_or_is_a_sentence(tmp_path, save):
    path = tmp_path / "a.pt"
    save({"a": torch.full((8,), 0.3)}, path)
    whole = path.read_bytes()
    for place in range(0, 8 * len(whole), 11):  # each bit of a byte in turn
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            content, _ = read_checkpoint(path)
        except ValueError as error:
            assert str(path) in str(error) and len(str(error).splitlines()) == 1
        else:
            assert content.keys() == {"a"} and torch.equal(content["a"], torch.full((8,), 0.3))


def test_a_file_whose_checksums_were_left_out_is_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.arange(3)}, tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_checkpoint(tmp_path / "a.pt")[0]["a"].tolist() == [0, 1, 2]


def test_python_objects_are_not_loaded(tmp_path):
    torch.save({"a": torch.zeros(2), "b": argparse.Namespace(c=1)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt holds Python objects beside tensors \(argparse\.Namespace\), which"):
        read_checkpoint(tmp_path / "a.pt")


class Runs:
    """What would make a folder if a pickle ran it."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_a_pickle_is_named_and_not_run(tmp_path):
    torch.save({"a": torch.zeros(2), "b": Runs(tmp_path / "ran")}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Runs(tmp_path / "ran"), protocol=2))
    for name in ("a.pt", "b.pt"):
        with pytest.raises(ValueError, match=rf"{name} holds Python objects beside tensors \(posix\.mkdir\)"):
            read_checkpoint(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def _zipped(*names):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return buffer.getvalue()


def _half():
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(2000)}, buffer)
    return buffer.getvalue()[:5000]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.pt", b"", "it is empty"),
        ("a.h5", b"\x89HDF\r\n\x1a\n" + bytes(range(128, 256)), "an HDF5 file, as Keras writes"),
        ("a.pt", b"\x1f\x8b\x08" + bytes(range(128, 256)), "compressed by gzip: unpack it"),
        ("scan.NII.gz", b"\x1f\x8b\x08" + bytes(range(128, 256)), "it is an image, not weights"),
        ("net.onnx", b"\x08\x09\x12\x07pytorch", "it is an ONNX network"),
        ("a.pt", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "a pointer of Git LFS"),
        ("a.pt", b"<!DOCTYPE html>\n<html>", "it is a web page in place of the file"),
        ("a.pt", b"hello,\nthese are no weights\n", "it is a text file"),
        ("a.npy", b"\x93NUMPY\x01\x00" + bytes(range(128, 256)), "an array of NumPy"),
        ("a.npz", _zipped("a.npy"), "an archive, but not one that torch.save wrote"),
        ("a.keras", _zipped("config.json", "model.weights.h5"), "an archive of Keras"),
        ("a.pt2", _zipped("a/archive_format", "a/models/model.json"), "a program of torch.export"),
        ("a.pt", _zipped("a/data.pkl", "a/constants.pkl", "a/code/x.py"), "a TorchScript archive"),
        ("a.pt", _half(), "it is cut short or damaged"),
        ("a.tar", b"a.pt".ljust(257, b"\0") + b"ustar  \0" + bytes(300), "a tar archive: unpack it"),
    ],
)  # fmt: skip
def test_what_is_no_checkpoint_is_told_by_what_it_is(tmp_path, name, content, said, recwarn):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is not a readable checkpoint \(.*{said}") as raised:
        read_checkpoint(tmp_path / name)
    assert len(str(raised.value).splitlines()) == 1 and not recwarn.list
