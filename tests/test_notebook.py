"""docs/tutorial.ipynb: valid, with the outputs of its own code, and it runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools.notebook import NOTEBOOK, checksum, execute, without_paths

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed (extra dev)")


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


def pictures(notebook):
    return [output for output in outputs(notebook) if "image/png" in output.get("data", ())]


def test_the_notebook_is_valid_and_its_outputs_are_those_of_its_code(notebook):
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert notebook.metadata.ran.code == checksum(notebook), "the code was changed: python -m tools.notebook"
    assert len(pictures(notebook)) == 3
    text = "".join(output.get("text", "") for output in outputs(notebook))
    assert not re.search("warning|error|not found", text, re.IGNORECASE)


def test_the_notebook_is_small_and_names_no_place_of_a_machine(notebook):
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 400_000
    words = re.sub(r'"image/png": "[^"]*"', "", text)
    assert not re.search(r"/(root|home|tmp|Users|var|work)/|\\\\Users", words)


def test_links_of_the_notebook_lead_somewhere(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\(([^)#\s]+)", cell.source):
                assert (NOTEBOOK.parent / target).exists(), target


def test_paths_of_this_machine_are_taken_out(tmp_path):
    text = f"Report: {tmp_path}/runs/report.html, {Path.home()}/.cache"
    assert without_paths(text, tmp_path) == "Report: runs/report.html, ~/.cache"


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    """From two folders to a picture, with a few steps of training."""
    pytest.importorskip("nbclient", reason="nbclient is not installed (extra dev)")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed (extra dev)")
    shorter = {"max_epochs": 2, "val_interval": 1, "batches_per_epoch": 8}
    edit = f"file = planned.folder / 'plan.json'\nfile.write_text(json.dumps(json.loads(file.read_text()) | {shorter}))"

    def change(source: str) -> str:  # a busy machine has no plan for minutes
        source = re.sub(r"^hours = \S+", "hours = 1", source, flags=re.MULTILINE)
        return f"import json\n{source}\n{edit};" if "plan_only=True" in source else source

    ran = execute(tmp_path, change)
    assert len(pictures(ran)) == 3
    text = "".join(output.get("text", "") for output in outputs(ran))
    assert "Mean Dice on" in text and "white matter" in text
    assert len(list((tmp_path / "runs/tutorial/later_predictions").glob("*.nii.gz"))) == 2
    assert (tmp_path / "runs/tutorial/model/models/model.pt").is_file()
