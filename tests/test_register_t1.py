"""The script for FSL, with programs in its place that write down how they are called."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from common.data.prepare import prepare

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
    for name in ("set/a_T1w.nii.gz", "set/deep er/b c T1.nii", "set/a_T2w.nii.gz", "set/derivatives/a_T1w.nii.gz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)

    def call(*words: str, path: str | None = None):
        environment = os.environ | {"PATH": path or f"{tools}:{os.environ['PATH']}"}
        return subprocess.run([SCRIPT, *words], capture_output=True, text=True, cwd=tmp_path, env=environment)

    return call


def files(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("scans", [(), ("set/a_T1w.nii.gz", "set/deep er/b c T1.nii")])
def test_each_scan_goes_through_the_papers_chain_once(call, tmp_path, scans):
    for _ in range(2):
        done = call("template.nii.gz", "set", "out", *scans)
        assert done.returncode == 0, done.stderr
    assert files(tmp_path / "out") == {
        "a_T1w.nii.gz": "set/a_T1w.nii.gz",
        "deep er/b c T1.nii.gz": "set/deep er/b c T1.nii",
    }
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [line.split()[0] for line in calls] == ["bet", "flirt", "fast"] * 2
    assert "-ref template.nii.gz" in calls[1] and "-dof 12" in calls[1] and "-B" in calls[2]


AGES = {
    "ixi": ["IXI_ID,AGE", *(f"{n},{30 + n}" for n in range(4))],
    "bids": ["participant_id\tage", *(f"sub-CC{n}\t{30 + n}" for n in range(4))],
    "abide": ["participant_id\tAGE_AT_SCAN\tDX_GROUP", *(f"{n}\t{30 + n}\t2" for n in range(4))],
}


@pytest.mark.parametrize(
    ("name", "image", "table", "options"),
    [
        ("ixi", "IXI-T1/IXI00{}-HH-1211-T1.nii.gz", "IXI.csv", {}),
        ("bids", "sub-CC{0}/anat/sub-CC{0}_T1w.nii.gz", "participants.tsv", {"domain": "camcan"}),
        ("abide", "RawDataBIDS/NYU/sub-000{0}/anat/sub-000{0}_T1w.nii.gz", "RawDataBIDS/NYU/participants.tsv", {}),
    ],
)
def test_what_it_writes_is_prepared_as_the_data_set_is(call, tmp_path, name, image, table, options):
    source = tmp_path / "published"
    for number in range(4):
        path = source / image.format(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(np.full((3, 4, 5), number + np.arange(5), np.float32), np.eye(4)), path)
        nib.save(nib.Nifti1Image(np.zeros((3, 4, 5), np.float32), np.eye(4)), path.with_name("x_bold.nii.gz"))
    (source / table).write_text("\n".join(AGES[name]))
    done = call("template.nii.gz", "published", "registered")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "registered" / image.format(0)).with_name("x_bold.nii.gz").exists()
    found = []
    for folder in (source, tmp_path / "registered"):
        prepare(name, folder, folder / "list.json", **options)
        found.append(json.loads((folder / "list.json").read_text()))  # with paths relative to the folder
    assert found[0] == found[1]
    items = [item for section in ("training", "validation", "test") for item in found[1][section]]
    assert sorted(item["age"] for item in items) == [30, 31, 32, 33]


def test_what_is_missing_is_one_sentence(call, tmp_path):
    assert "usage:" in call("template.nii.gz", "set").stderr
    (tmp_path / "empty").mkdir()
    (tmp_path / "b_T1w.nii.gz").write_text("of no data set")
    for words, message in (
        (("none.nii.gz", "set", "out"), "no template none.nii.gz"),
        (("template.nii.gz", "sets", "out"), "no folder sets"),
        (("template.nii.gz", "empty", "out"), "is below"),
        (("template.nii.gz", "set", "set/out"), "is in"),
        (("template.nii.gz", "set", "out", "set/none.nii"), "no scan set/none.nii"),
        (("template.nii.gz", "set", "out", "b_T1w.nii.gz"), "b_T1w.nii.gz is not below"),
    ):
        done = call(*words)
        assert done.returncode == 1 and message in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "calls").exists()
    missing = call("template.nii.gz", "set", "out", path="/usr/bin:/bin")
    assert missing.returncode == 1 and "bet of FSL is not on the PATH" in missing.stderr
