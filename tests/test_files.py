from __future__ import annotations

import errno
import hashlib
import os
import stat
import subprocess
import sys
import time
import tracemalloc
from multiprocessing.pool import ThreadPool
from pathlib import Path

import pytest
from filelock import Timeout

from common import files
from common.files import atomic_write, cache_folder, file_digest, held_folder, names_below
from common.pack.weights import large_files


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_content_and_mode(tmp_path, umask, mode):
    path = tmp_path / "new" / "a.txt"
    before = os.umask(umask)
    try:
        with atomic_write(path) as temporary:
            temporary.write_text("whole")
            assert not path.exists() and temporary.parent == path.parent
    finally:
        os.umask(before)
    assert path.read_text() == "whole" and os.listdir(path.parent) == ["a.txt"]
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_threads_leave_the_umask_and_the_modes_alone(tmp_path, monkeypatch):
    umask = os.umask

    def slow(mask):
        before = umask(mask)
        time.sleep(0.02)
        return before

    def write(number):
        path = tmp_path / str(number) / "a.txt"
        with atomic_write(path) as temporary:
            temporary.write_text("whole")
        return [stat.S_IMODE(made.stat().st_mode) for made in (path.parent, path)]

    before = umask(0o027)
    monkeypatch.setattr(os, "umask", slow)
    try:
        with ThreadPool(4) as pool:
            modes = pool.map(write, range(8), chunksize=1)
        assert umask(0o027) == 0o027
    finally:
        umask(before)
    assert modes == [[0o750, 0o640]] * 8


def test_the_content_is_on_the_disk_before_it_has_the_name(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: calls.append(os.fstat(file).st_size) or fsync(file))
    monkeypatch.setattr(os, "replace", lambda a, b: calls.append("replace") or replace(a, b))
    with atomic_write(tmp_path / "a.txt") as temporary:
        # As safetensors writes: another file takes the place of the temporary one.
        (tmp_path / "other").write_text("whole")
        replace(tmp_path / "other", temporary)
    assert calls == [5, "replace"]


@pytest.mark.parametrize("failing", ["block", "fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, failing):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail(*arguments):
        raise OSError("disk full")

    if failing != "block":
        monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="disk full"), atomic_write(path) as temporary:
        temporary.write_text("half")
        if failing == "block":
            fail()
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_a_full_disk_is_named_with_the_file(tmp_path):
    path = tmp_path / "model.pt"
    with pytest.raises(OSError) as caught, atomic_write(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.errno == errno.ENOSPC and type(caught.value) is OSError
    assert str(caught.value) == f"[Errno 28] {path} could not be written (No space left on device)"


def test_a_folder_without_permission_is_named_with_the_file(tmp_path, monkeypatch):
    def refuse(*arguments, **named):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "temporary")

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(PermissionError) as caught, atomic_write(tmp_path / "model.pt"):
        pass
    assert str(caught.value) == f"[Errno 13] {tmp_path / 'model.pt'} could not be written (Permission denied)"


def test_the_error_of_another_file_stays_as_it_is(tmp_path):
    with pytest.raises(FileNotFoundError, match="other") as caught, atomic_write(tmp_path / "model.pt"):
        (tmp_path / "other").read_text()
    assert caught.value.filename == str(tmp_path / "other")


@pytest.mark.parametrize(
    ("host", "lives", "age", "removed"),
    [
        ("this", False, 700, True),
        ("this", False, 60, False),
        ("this", True, 700, False),
        ("this", True, 90_000, True),
        ("00000000", False, 700, False),
        ("00000000", False, 90_000, True),
    ],
)
def test_files_that_a_kill_left_are_removed(tmp_path, host, lives, age, removed):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    pid = os.getpid() if lives else ended.pid
    left = tmp_path / f".a.txt.tmp-{files._host() if host == 'this' else host}-{pid}-abcd_123"
    others = [tmp_path / name for name in (".b" + left.name[2:], ".a.txt.original", left.name + ".txt")]
    for path in (left, *others):
        path.write_text("half")
        os.utime(path, (time.time() - age,) * 2)
    with atomic_write(tmp_path / "a.txt") as temporary:
        temporary.write_text("whole")
    assert left.exists() != removed and all(path.exists() for path in others)


@pytest.mark.skipif(os.name != "posix", reason="kills a process")
def test_a_killed_writer_leaves_a_name_that_is_known(tmp_path):
    code = "import os; from common.files import atomic_write\nwith atomic_write('a.txt'): os._exit(9)"
    environment = os.environ | {"PYTHONPATH": str(Path(files.__file__).resolve().parents[1])}
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment).returncode == 9
    (left,) = tmp_path.iterdir()
    os.utime(left, (time.time() - 700,) * 2)
    with atomic_write(tmp_path / "a.txt"):
        pass
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_suffix_ends_the_temporary_name_and_is_known_again(tmp_path):
    left = tmp_path / f".a.nii.gz.tmp-{files._host()}-999999999-abcd_123.nii.gz"
    left.write_text("half")
    os.utime(left, (time.time() - 90_000,) * 2)
    with atomic_write(tmp_path / "a.nii.gz", suffix=".nii.gz") as temporary:
        assert temporary.name.endswith(".nii.gz") and temporary.name.startswith(".a.nii.gz.tmp-")
        temporary.write_text("whole")
    assert os.listdir(tmp_path) == ["a.nii.gz"]


def test_a_held_folder_keeps_others_out_and_goes_if_nothing_was_written(tmp_path):
    with pytest.raises(ValueError, match="refused"), held_folder(tmp_path / "a" / "b"):
        with pytest.raises(Timeout), held_folder(tmp_path / "a" / "b", timeout=0):
            pass
        raise ValueError("refused")
    assert list(tmp_path.iterdir()) == []
    with held_folder(tmp_path / "a"):
        (tmp_path / "a" / "result").write_text("kept")
    with held_folder(tmp_path / "a"):
        pass
    assert sorted(os.listdir(tmp_path / "a")) in ([".lock", "result"], ["result"])
    (tmp_path / "empty").mkdir()
    with held_folder(tmp_path / "empty"):
        pass
    assert (tmp_path / "empty").is_dir()


def test_a_digest_is_of_all_files_in_their_order(tmp_path):
    contents = [b"one" * 300_000, b"", b"two"]
    paths = [tmp_path / str(number) for number in range(3)]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    assert file_digest(paths[0]) == hashlib.sha256(contents[0]).hexdigest()
    assert file_digest(*paths) == hashlib.sha256(b"".join(contents)).hexdigest()
    assert file_digest(*paths[::-1]) != file_digest(*paths)


@pytest.mark.parametrize("digest", [file_digest, lambda path: large_files({path: "https://a.b/c"})])
def test_a_digest_needs_no_memory_for_the_file(tmp_path, digest):
    (tmp_path / "large").write_bytes(bytes(16_000_000))
    tracemalloc.start()
    try:
        assert hashlib.sha256(bytes(16_000_000)).hexdigest() in digest(tmp_path / "large")
        tracemalloc.reset_peak()
        digest(tmp_path / "large")
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "monai-transfer-bundles"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder() == Path.home() / ".cache" / "monai-transfer-bundles"


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["/d/s1/t1.nii.gz", "/d/s2/t1.nii.gz"], ["s1/t1", "s2/t1"]),
        (["/d/a.nii", "/d/b.mha", "/d/c.NRRD", "/d/series"], ["a", "b", "c", "series"]),
        (["/d/a.nii", "/d/a.mha"], ["a.nii", "a.mha"]),
        (["/d/a.b.nii.gz"], ["a.b"]),
        ([], []),
    ],
)
def test_names_tell_files_apart(files, names):
    assert names_below(files) == names
