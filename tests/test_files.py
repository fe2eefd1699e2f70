from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from common.files import atomic_write, cache_folder


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


def test_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "monai-transfer-bundles"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder() == Path.home() / ".cache" / "monai-transfer-bundles"
