"""The page of results is made of the comparisons' own files."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from tools.results import BEGIN, DOCS, END, main

ARMS = ("scratch", "mae")


@pytest.fixture
def runs(tmp_path) -> Path:
    """Two seeds and three subjects; mae is 0.1 better in each."""
    folder = tmp_path / "runs"
    folder.mkdir()
    rows = [
        {"arm": arm, "fraction": 0.1, "labels": 1, "seed": seed, "metric": "val_mean_dice", "structure": "mean"}
        | {"subject": f"s{subject}", "value": 0.5 + 0.1 * (arm == "mae") + 0.01 * seed + 0.03 * subject}
        for arm in ARMS
        for seed in (0, 1)
        for subject in (0, 1, 2)
    ]
    costs = [{"arm": arm, "stage": "train", "fraction": 0.1, "seed": 0, "status": "done", "steps": 40} for arm in ARMS]
    for name, table in (("subjects", rows), ("costs", costs)):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(table[0]))
            writer.writeheader()
            writer.writerows(table)
    about = {
        "bundle": "ssl3d",
        "arms": {name: {"description": name} for name in ARMS},
        "baseline": "scratch",
        "seeds": [0, 1],
        "metrics": {"val_mean_dice": "higher"},
        "margin": 0.01,
        "labelled": {"1": [1, 4]},
        "machine": ["a machine"],
    }
    (folder / "comparison.json").write_text(json.dumps(about))
    return folder


def test_a_comparison_becomes_a_row(runs, tmp_path):
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "results.md").write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert main(["--docs", str(docs), "add", str(runs), "toy", "--on", "Toys, one", "--code", "abc"]) == 0
    text = (docs / "results.md").read_text()
    assert text.startswith(f"before\n{BEGIN}") and text.endswith(f"{END}\nafter\n") and "old" not in text
    (row,) = (line for line in text.splitlines() if "Toys" in line)
    assert "| Toys, one (`ssl3d`) | 40 steps | 1 training + 4 validation labels | mae 0.635 | scratch 0.535 |" in row
    assert "+0.100" in row and "| 2, 3 | `abc`, 20" in row and "a machine" in row
    (docs / "results.md").write_text("no place\n")
    with pytest.raises(SystemExit, match="lacks the lines"):
        main(["--docs", str(docs)])


def test_the_page_is_current(tmp_path):
    """``python -m tools.results`` makes it anew."""
    shutil.copytree(DOCS / "results", tmp_path / "results")
    shutil.copy(DOCS / "results.md", tmp_path)
    assert main(["--docs", str(tmp_path)]) == 0
    assert (tmp_path / "results.md").read_text() == (DOCS / "results.md").read_text()
