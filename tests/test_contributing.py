"""The worked examples of CONTRIBUTING.md, done step by step in a copy of the collection."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# A block of code, and the file that the line above it names.
BLOCK = re.compile(r"(?:`([^`\n]+)`:\n\n)?```(\w+)\n(.*?)```", re.DOTALL)


@pytest.fixture
def copy(tmp_path):
    """What a contributor has: the collection in a folder of its own."""
    for name in ("bundles", "common", "tests", "tools"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "models", "eval"))
    for name in ("LICENSE", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def section(title: str) -> list[tuple[str, str, str]]:
    """The blocks of a section: the file that each is the content of, its language, its text."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return BLOCK.findall(text.partition(f"\n## {title}\n")[2].partition("\n## ")[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("title", "tests"),
    [
        # one network is pre-trained and fine-tuned with it; its overlay is written plainly, of targets that exist, ...
        ("Add a pretext", ["test_any_network_with_any_pretext[unetr-mirror]", "test_overlays_change_ids_that_exist"]),
        ("Add a bundle", ["test_monai_finds_its_properties", "test_runs_from_a_foreign_folder", "test_runs_packed"]),
    ],
)
def test_a_worked_example_works(title, tests, copy, quick_start):
    blocks = section(title)
    assert blocks[-1][1] == "bash"
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    path = os.pathsep.join([str(copy), quick_start])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": "-vv"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for name, language, text in blocks:
        if language == "bash":
            done = subprocess.run(
                ["bash", "-euc", text],
                cwd=copy,
                env=environment,
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
            )
            assert done.returncode == 0, f"{text}\n{done.stdout[-4000:]}{done.stderr[-2000:]}"
        else:
            assert name and not (copy / name).exists()
            (copy / name).write_text(text, encoding="utf-8")
    passed = "\n".join(line for line in done.stdout.splitlines() if "PASSED" in line)
    assert all(test in passed for test in tests), done.stdout[-4000:]
    assert " skipped" not in done.stdout.splitlines()[-1] or title == "Add a bundle", done.stdout[-2000:]
    # nothing that was there has to be edited
    assert {path: path.read_bytes() for path in before} == before
