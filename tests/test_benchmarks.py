"""`benchmarks/run.py` knows every benchmark; those of whole runs work, tiny."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def test_every_file_with_rows_is_in_the_list(load):
    files = {path.stem for path in FOLDER.glob("*.py") if "\ndef rows(quick: bool, device" in path.read_text()}
    names = load("run").NAMES
    assert set(names) == files and list(names) == sorted(names)


def test_the_page_has_the_text_of_the_script_and_names_what_has_no_section(load):
    run = load("run")
    page = (FOLDER / "RESULTS.md").read_text()
    assert page.startswith(run.HEAD)
    sections = re.findall(r"^## (\w+)$", page, re.MULTILINE)
    others = {path.stem for path in FOLDER.glob("*.py") if "__main__" in path.read_text()} - {"run"}
    for name in {*run.NAMES, *sections, *others}:
        by_run = name in run.NAMES and name in sections
        assert by_run or f"`{name}`" in run.HEAD or f"`{name}.py`" in run.HEAD, name


@pytest.mark.slow  # four imports of MONAI
def test_a_run_starts_beside_an_import_of_monai(load):
    rows = load("start_of_a_run").rows(True, torch.device("cpu"))
    assert [row.unit for row in rows] == ["s", "s"] and all(min(row.baseline, row.ours) > 0 for row in rows)


@pytest.mark.slow
def test_the_generator_is_a_part_of_a_step(load):
    [row] = load("generator_step").rows(True, torch.device("cpu"))
    assert "1 x 32 x 48 x 32" in row.name and 0 < row.ratio < 1


@pytest.mark.slow
@pytest.mark.parametrize("bundle", ["medical_transformer", "transseg"])
def test_the_memory_of_a_bundle_is_that_of_a_whole_run(load, bundle):
    """The script checks that the label map on the disk has the grid of the scan."""
    memory = load("inference_memory")
    assert bundle in memory.BUNDLES and memory.peak(bundle, (48, 40, 32)) > 0
