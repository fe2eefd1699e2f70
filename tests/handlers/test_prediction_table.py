from __future__ import annotations

import csv

import pytest
import torch
from ignite.engine import Engine
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.transforms import Activationsd
from torch import nn

from common.handlers import PredictionTable, prediction_table
from common.transforms import EncodeTargetd


class Means(nn.Module):
    """What is predicted of an image of one value: that value times each weight."""

    def __init__(self, *weights):
        super().__init__()
        self.weights = torch.tensor(weights)

    def forward(self, x):
        return x.mean((1, 2, 3, 4))[:, None] * self.weights


def evaluator(path, network, labels, num_classes=None, postprocessing=None, **options):
    """MONAI's own, over images /d/0,a.nii, ... of the values 1, 2, ..."""
    data = [
        {
            "image": MetaTensor(torch.full((1, 2, 2, 2), n + 1.0), meta={"filename_or_obj": f"/d/{n},a.nii"}),
            **({} if label is None else {"label": label}),
        }
        for n, label in enumerate(labels)
    ]
    target = EncodeTargetd("label", num_classes=num_classes, allow_missing_keys=True)
    return SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(data, target), batch_size=2),
        network=network,
        postprocessing=postprocessing,
        val_handlers=[PredictionTable(path, **options)],
    )


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_numbers(tmp_path):
    path = tmp_path / "eval" / "predictions.csv"
    evaluator(path, Means(2.5), [30, 41.25, 50]).run()
    assert path.read_text().splitlines() == [
        "filename,label,prediction",
        '"/d/0,a.nii",30,2.5',
        '"/d/1,a.nii",41.25,5',
        '"/d/2,a.nii",50,7.5',
    ]
    assert [file.name for file in path.parent.iterdir()] == ["predictions.csv"]


def test_probabilities_of_classes(tmp_path):
    path = tmp_path / "predictions.csv"
    softmax = Activationsd("pred", softmax=True)
    evaluator(path, Means(0.0, -1.0, 0.5), [0, 2, 1], num_classes=3, postprocessing=softmax).run()
    table = rows(path)
    assert list(table[0]) == ["filename", "label", "prediction", "probability_0", "probability_1", "probability_2"]
    assert [row["label"] for row in table] == ["0", "2", "1"] and {row["prediction"] for row in table} == {"2"}
    for n, row in enumerate(table):
        expected = ((n + 1) * torch.tensor([0, -1.0, 0.5])).softmax(0).tolist()
        assert [float(row[f"probability_{k}"]) for k in range(3)] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"label": None}])
def test_scans_without_a_label_have_an_empty_one(tmp_path, options):
    path = tmp_path / "predictions.csv"
    evaluator(path, Means(1.0), [None, None], **options).run()
    assert [(row["label"], row["prediction"]) for row in rows(path)] == [("", "1"), ("", "2")]


def test_a_label_that_is_there_can_be_left_out(tmp_path):
    path = tmp_path / "predictions.csv"
    evaluator(path, Means(1.0), [30, 40], label=None).run()
    assert [row["label"] for row in rows(path)] == ["", ""]


def test_the_table_is_of_the_last_run(tmp_path):
    path, network = tmp_path / "predictions.csv", Means(1.0)
    engine = evaluator(path, network, [30, 40, 50])
    engine.run()
    network.weights = torch.tensor([10.0])
    engine.run()
    assert [float(row["prediction"]) for row in rows(path)] == [10, 20, 30]


def test_other_keys(tmp_path):
    engine = Engine(lambda engine, batch: [{"age": torch.tensor([50.0]), "made": torch.tensor([49.0])}])
    PredictionTable(tmp_path / "a.csv", label="age", prediction="made").attach(engine)
    engine.run([[{"image": MetaTensor(torch.zeros(1), meta={"filename_or_obj": "x"})}]])
    assert (tmp_path / "a.csv").read_text() == "filename,label,prediction\nx,50,49\n"


def test_rank_0_writes_for_all(tmp_path, monkeypatch):
    module = "common.handlers.prediction_table"
    monkeypatch.setattr(f"{module}.idist.get_world_size", lambda: 2)
    monkeypatch.setattr(f"{module}.string_list_all_gather", lambda files: [*files, "/d/other.nii"])
    other = torch.tensor([[60.0, 61.0]])
    monkeypatch.setattr(
        f"{module}.evenly_divisible_all_gather", lambda values, concat: torch.cat((values.cpu(), other))
    )
    monkeypatch.setattr(f"{module}.idist.get_rank", lambda: 1)
    path = tmp_path / "predictions.csv"
    engine = evaluator(path, Means(1.0), [30])
    engine.run()
    assert not path.exists()
    monkeypatch.setattr(f"{module}.idist.get_rank", lambda: 0)
    engine.run()
    assert [(row["filename"], row["prediction"]) for row in rows(path)] == [("/d/0,a.nii", "1"), ("/d/other.nii", "61")]


def test_no_scan_makes_a_table_without_rows(tmp_path):
    PredictionTable(tmp_path / "predictions.csv").write(Engine(lambda *_: None))
    assert (tmp_path / "predictions.csv").read_text() == "filename,label,prediction\n"


def test_a_process_without_a_scan(tmp_path, monkeypatch):
    """As rank 0 of two sees it; the other has one scan of two classes."""
    other = torch.tensor([[1.0, 0.25, 0.75]])
    monkeypatch.setattr(prediction_table.idist, "get_world_size", lambda: 2)
    monkeypatch.setattr(prediction_table.idist, "all_reduce", lambda width, op: max(width, 3))
    monkeypatch.setattr(prediction_table, "string_list_all_gather", lambda files: ["\t".join(files), "/d/a.nii"])
    gather = lambda values, concat: torch.cat((values.cpu(), other))  # noqa: E731
    monkeypatch.setattr(prediction_table, "evenly_divisible_all_gather", gather)
    path = tmp_path / "predictions.csv"
    PredictionTable(path).write(Engine(lambda *_: None))
    assert path.read_text().splitlines()[1:] == ["/d/a.nii,1,1,0.25,0.75"]
