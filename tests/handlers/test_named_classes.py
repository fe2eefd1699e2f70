from __future__ import annotations

import csv

import pytest
import torch
from ignite.engine import Engine
from monai.handlers import write_metrics_reports

from common.handlers import NamedClasses

NAMES = {0: "background", "2": "CSF, all", 1: "cortex"}  # in JSON keys are strings; the order does not matter


def written(folder, names=NAMES, columns=2, rank=None, images=("/d/a,b class1.nii", "/d/c.nii")):
    """Tables as MONAI writes them, after the handler."""
    values = torch.arange(2.0 * columns).reshape(2, columns)
    write_metrics_reports(str(folder), list(images), {"dice": 1.0}, {"dice": values}, "*")
    engine = Engine(lambda engine, batch: None)
    NamedClasses(folder, names).attach(engine)
    engine.run([0], max_epochs=1)
    raw = (folder / "dice_raw.csv").read_text().splitlines()
    with (folder / "dice_summary.csv").open() as file:
        return raw, list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("columns", "header", "first"),
    [
        (3, 'filename,background,cortex,"CSF, all",mean', ["background", "cortex", "CSF, all", "mean"]),
        (2, 'filename,cortex,"CSF, all",mean', ["cortex", "CSF, all", "mean"]),
        (1, "filename,class0,mean", ["class0", "mean"]),  # neither all classes nor all but the background
        (4, "filename,class0,class1,class2,class3,mean", ["class0", "class1", "class2", "class3", "mean"]),
    ],
)
def test_columns_have_the_names_of_their_classes(tmp_path, columns, header, first):
    raw, summary = written(tmp_path, columns=columns)
    assert raw[0] == header and len(raw) == 3
    assert raw[1].startswith("/d/a,b class1.nii,0.0,") and raw[2].startswith(f"/d/c.nii,{columns}.0,")
    assert [row["class"] for row in summary] == first
    assert [float(row["max"]) for row in summary[:-1]] == [columns + n for n in range(columns)]
    assert (tmp_path / "metrics.csv").read_text() == "dice,1.0\n"


def test_tables_that_have_the_names_already_stay(tmp_path):
    written(tmp_path)
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    engine = Engine(lambda engine, batch: None)
    NamedClasses(tmp_path, NAMES).attach(engine)
    engine.run([0], max_epochs=1)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before and len(before) == 3


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_a_task_without_classes(tmp_path, columns):
    """Has one value per scan; several columns keep MONAI's names."""
    raw, summary = written(tmp_path, names=None, columns=columns)
    expected = ["value"] if columns == 1 else [f"class{number}" for number in range(columns)]
    assert raw[0].split(",") == ["filename", *expected, "mean"]
    assert [row["class"] for row in summary] == [*expected, "mean"]


def test_only_rank_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("common.handlers.named_classes.idist.get_rank", lambda: 1)
    assert written(tmp_path)[0][0] == "filename,class0,class1,mean"
