from __future__ import annotations

import os
import stat

import pytest
import torch

from common.handlers.files import atomic_torch_save


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_content_and_mode(tmp_path, umask, mode):
    path = tmp_path / "new" / "a.pt"
    before = os.umask(umask)
    try:
        atomic_torch_save({"a": torch.arange(3)}, path)
    finally:
        os.umask(before)
    assert torch.load(path, weights_only=True)["a"].tolist() == [0, 1, 2]
    assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.parametrize("failing", ["save", "fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, failing):
    path = tmp_path / "a.pt"
    atomic_torch_save({"a": torch.arange(3)}, path)
    before = path.read_bytes()

    def fail(*args, **kwargs):
        if failing == "save":
            args[1].write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch if failing == "save" else os, failing, fail)
    with pytest.raises(OSError, match="disk full"):
        atomic_torch_save({"a": torch.arange(4)}, path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.pt"]
