"""The script for FSL, with programs in its place that write down how they are called."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "tools" / "register_t1.sh"
FAKES = {
    "bet": 'cp "$1" "$2.nii.gz"',
    "flirt": 'cp "$2.nii.gz" "$6.nii.gz"',
    "fast": 'cp "$6.nii.gz" "$5_restore.nii.gz"',
}


@pytest.fixture
def call(tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, body in FAKES.items():
        (tools / name).write_text(f'#!/bin/bash\necho "{name} $*" >> "{tmp_path}/calls"\n{body}\n')
        (tools / name).chmod(0o755)
    (tmp_path / "template.nii.gz").write_text("template")
    for name in ("a.nii.gz", "b c.nii"):
        (tmp_path / name).write_text(name)

    def call(*words: str, path: str | None = None):
        environment = os.environ | {"PATH": path or f"{tools}:{os.environ['PATH']}"}
        return subprocess.run([SCRIPT, *words], capture_output=True, text=True, cwd=tmp_path, env=environment)

    return call


def test_each_scan_goes_through_the_papers_chain_once(call, tmp_path):
    for _ in range(2):
        done = call("template.nii.gz", "out", "a.nii.gz", "b c.nii")
        assert done.returncode == 0, done.stderr
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == {
        "a.nii.gz": "a.nii.gz",
        "b c.nii.gz": "b c.nii",
    }
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [line.split()[0] for line in calls] == ["bet", "flirt", "fast"] * 2
    assert "-ref template.nii.gz" in calls[1] and "-dof 12" in calls[1] and "-B" in calls[2]


def test_what_is_missing_is_one_sentence(call, tmp_path):
    assert "usage:" in call("template.nii.gz").stderr
    assert "no template none.nii.gz" in call("none.nii.gz", "out", "a.nii.gz").stderr
    missing = call("template.nii.gz", "out", "a.nii.gz", path="/usr/bin:/bin")
    assert missing.returncode == 1 and "bet of FSL is not on the PATH" in missing.stderr
