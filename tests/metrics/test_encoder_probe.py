from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import DataLoader, Dataset

from common.metrics import EncoderProbe

AGES = [{"age": float(age)} for age in range(20, 60, 4)]


def draw(rows=10, columns=6):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def run(probe, items, batch_size=3):
    """An evaluator that passes the items by in batches."""

    def step(engine, batch):
        return {"image": torch.tensor([item["x"] for item in batch["items"]], dtype=torch.float32)}

    engine = Engine(step)
    probe.attach(engine, "probe")
    batches = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
    engine.run([{"items": part, probe.target: [item[probe.target] for item in part]} for part in batches])
    return engine.state.metrics["probe"]


def test_features_that_hold_the_trait_have_no_error_and_others_have_that_of_the_mean():
    rng = np.random.default_rng(0)
    told = [item | {"x": [2 * item["age"], 1.0]} for item in AGES]
    other = [item | {"x": [float(rng.normal()), 1.0]} for item in AGES]
    assert run(EncoderProbe(lambda x: x, "age", told), told) < 0.1
    assert 8 < run(EncoderProbe(lambda x: x, "age", other), other) < 16  # the constant's: 11.1 of these ages


def test_classes_count_alike_whatever_their_number():
    items = [{"diagnosis": "AD" if n < 2 else "NC", "x": [float(n < 2), 0.1 * (n % 3)]} for n in range(12)]
    assert run(EncoderProbe(lambda x: x, "diagnosis", items, "class"), items) == 0
    blind = [item | {"x": [0.0, 0.1 * (n % 3)]} for n, item in enumerate(items)]
    assert run(EncoderProbe(lambda x: x, "diagnosis", blind, "class"), blind) == 0.5  # all are called NC


@pytest.mark.parametrize("classes", [(0, 1), (False, True), (0.5, 1.5)], ids=["int", "bool", "float"])
def test_classes_that_the_loader_collates_into_a_tensor_are_those_of_the_list(classes):
    items = [{"diagnosis": classes[n < 4], "image": torch.tensor([float(n < 4), 0.1 * (n % 3)])} for n in range(12)]
    probe = EncoderProbe(lambda x: x, "diagnosis", items, "class")
    engine = Engine(lambda engine, batch: {"image": batch["image"]})
    probe.attach(engine, "probe")
    engine.run(DataLoader(Dataset(items), batch_size=4))
    assert isinstance(engine.state.batch["diagnosis"], torch.Tensor)
    assert engine.state.metrics["probe"] == 0


def test_features_that_are_not_finite_are_no_best(caplog):
    items = [item | {"x": [math.nan]} for item in AGES]
    assert math.isnan(run(EncoderProbe(lambda x: x, "age", items), items))
    assert "A probe of 10 validation scans tells little" in caplog.text


@pytest.mark.parametrize(
    ("data", "kind", "said"),
    [
        (AGES[:3], "number", "needs 4 validation scans or more, all of them with it; the validation list has 3, 0 of"),
        ([*AGES, {}], "number", "has 11, 1 of them without it"),
        ([*AGES, {"age": "old"}], "number", "holds a value that is no number"),
        ([*AGES, {"age": math.nan}], "number", "not finite"),
        ([{"age": 3}] * 5, "class", "All validation scans have the same 'age', 3"),
        (AGES, "years", "kind is 'number' or 'class', not 'years'"),
    ],
)
def test_what_cannot_be_probed_is_refused(data, kind, said):
    with pytest.raises(ValueError, match=said):
        EncoderProbe(lambda x: x, "age", data, kind)
