from __future__ import annotations

import csv

import pytest
import torch
from ignite.engine import Engine
from monai.handlers import write_metrics_reports

from common.handlers import NamedClasses, ScoreTable
from common.metrics import PooledDice

NAMES = {"0": "background", "1": "cortex", "2": "CSF, all"}


def written(folder, images, scores, pooled=None):
    """Tables as MONAI writes them, after both handlers."""
    details = {
        "val_dice": torch.tensor([[0.5, float("nan")], [0.25, 0.0]]),
        "val_hd95": torch.tensor([[1.5, float("nan")], [2.0, 99.0]]),
    }
    write_metrics_reports(str(folder), images, {"val_dice": 0.3}, details, None)
    engine = Engine(lambda engine, batch: None)
    engine.state.metrics = dict.fromkeys(details, 0.0)
    for handler in (NamedClasses(folder, NAMES), ScoreTable(folder, scores, pooled, NAMES)):
        handler.attach(engine)
    engine.run([0], max_epochs=1)


def rows(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_a_row_a_case_and_class(tmp_path):
    scores = {"dice": "val_dice", "nsd": "val_nsd", "hd95": "val_hd95"}
    written(tmp_path, ["/d/b,2.nii.gz", "/d/a.nii"], scores)
    assert rows(tmp_path / "scores.csv") == [
        ["case", "class", "dice", "hd95"],
        ["a", "cortex", "0.25", "2.0"],
        ["a", "CSF, all", "0.0", "99.0"],
        ["b,2", "cortex", "0.5", "1.5"],
        ["b,2", "CSF, all", "", ""],
    ]


def test_cases_of_one_name_have_their_folders(tmp_path):
    written(tmp_path, ["/d/s1/t1.nii.gz", "/d/s2/t1.nii.gz"], {"dice": "val_dice"})
    assert [row[0] for row in rows(tmp_path / "scores.csv")[1:]] == ["s1/t1"] * 2 + ["s2/t1"] * 2


def test_no_table_where_a_number_is_predicted(tmp_path):
    written(tmp_path, ["/d/a.nii", "/d/b.nii"], {"dice": "val_mean_dice"})
    assert not (tmp_path / "scores.csv").exists()


def test_pooled_dice_by_class(tmp_path):
    pooled, truth = PooledDice(), torch.zeros(2, 3, 4, 4, 4)
    truth[:, 1, :2] = 1
    prediction = truth.clone()
    prediction[0, 1, 1] = 0
    pooled(prediction, truth)
    written(tmp_path, ["/d/a.nii", "/d/b.nii"], {"dice": "val_dice"}, pooled)
    header, cortex, other = rows(tmp_path / "pooled_dice.csv")
    assert header == ["class", "dice", "voxels", "slices", "slice_dice"] and other == ["CSF, all", "", "0", "0", ""]
    assert cortex[2:] == ["64", "8", "1.0"]
    assert cortex[0] == "cortex" and float(cortex[1]) == pytest.approx(2 * 48 / (48 + 64))
