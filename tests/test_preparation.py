from __future__ import annotations

import json

import pytest
import torch
from monai.transforms import (
    Compose,
    CropForegroundd,
    NormalizeIntensityd,
    Orientationd,
    RandFlipd,
    Resized,
    ScaleIntensityRanged,
)

from common.preparation import compare_preparation, preparation_record
from common.transforms import AveragePoold, CheckVolumed, DomainSpacingd, LoadVolumed, NoiseBackgroundd, Spacingd


def pipeline(spacing=(2.0, 2.0, 2.0), a_max=250, axcodes="RAS", channels=1):
    return Compose(
        [
            LoadVolumed(["image", "label"]),
            CheckVolumed("image", label_key="label", channels=channels),
            Orientationd(["image", "label"], axcodes=axcodes, labels=None),
            Compose([Spacingd("image", pixdim=spacing), Spacingd("label", pixdim=(9, 9, 9), mode="nearest")]),
            CropForegroundd("image", source_key="image", allow_smaller=True),
            ScaleIntensityRanged("image", a_min=-175, a_max=a_max, b_min=0.0, b_max=1.0, clip=True),
            RandFlipd("image", prob=0.5),
        ]
    )


def test_the_record_is_read_off_the_transforms():
    record = preparation_record(pipeline())
    assert json.loads(json.dumps(record)) == record
    assert record.pop("crops")[0]["transform"] == "CropForegroundd"
    assert record == {
        "channels": 1,
        "orientation": "RAS",
        "spacing": [2.0, 2.0, 2.0],
        "pooling": 1,
        "size": None,
        "intensity": [
            {"transform": "ScaleIntensityRanged", "a_max": 250, "a_min": -175, "b_max": 1.0, "b_min": 0.0, "clip": True}
        ],
        "value_range": [0.0, 1.0],
        "task": None,
        "format": 1,
    }


def test_spacings_of_domains_pooling_and_sizes():
    spacings = {"a": [1, 1, 1], "b": [2, 2, 2]}
    record = preparation_record([DomainSpacingd("image", spacings), NoiseBackgroundd("image")])
    assert record["spacing"] == {"a": [1.0, 1.0, 1.0], "b": [2.0, 2.0, 2.0]}
    assert record["intensity"] == [{"transform": "NoiseBackgroundd"}]
    record = preparation_record([Spacingd("image", (1.0, 1.0, 1.5)), AveragePoold("image", 2)])
    assert record["spacing"] == [2.0, 2.0, 3.0]
    record = preparation_record([DomainSpacingd("image", spacings), AveragePoold("image", 2)])
    assert record["spacing"] == {"a": [2.0, 2.0, 2.0], "b": [4.0, 4.0, 4.0]} and record["pooling"] == 2
    assert preparation_record(Resized("image", (64, 64, -1)))["size"] == [64, 64, -1]


def test_transforms_that_it_does_not_know_are_kept():
    class Sharpend(NormalizeIntensityd):
        def __init__(self, keys, strength):
            super().__init__(keys)
            self.strength = strength

    (step,) = preparation_record(Sharpend("image", torch.tensor([2.0, 3.0])))["intensity"]
    assert step["transform"] == "Sharpend" and step["strength"] == [2.0, 3.0] and step["nonzero"] is False

    def halve(data):
        return data

    assert preparation_record([halve])["intensity"] == [{"transform": "halve"}]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"spacing": (2.0, 2.0, 3.0)}, "spacing"),
        ({"a_max": 240}, "intensity"),
        ({"axcodes": "LPS"}, "orientation"),
        ({"channels": 2}, "channels"),
    ],
)
def test_a_difference_is_a_sentence_with_the_id(change, name):
    made = preparation_record(pipeline())
    assert compare_preparation(made, preparation_record(pipeline())) == []
    (sentence,) = compare_preparation(made, preparation_record(pipeline(**change)))
    assert f"made with {name} " in sentence and "(id `" in sentence


def test_pooling_is_a_difference_where_no_spacing_holds_it():
    one, two = (preparation_record([AveragePoold("image", k), NormalizeIntensityd("image")]) for k in (1, 2))
    assert compare_preparation(two, two) == []
    assert compare_preparation(one, two) == ["it was made with pooling 1, the images have 2 (id `pooling`)."]
    whole = preparation_record([Spacingd("image", (2, 2, 2)), NormalizeIntensityd("image")])
    halves = preparation_record([Spacingd("image", (1, 1, 1)), NormalizeIntensityd("image"), AveragePoold("image", 2)])
    assert compare_preparation(whole, halves) == compare_preparation(one, halves) == []


def test_older_records_do_not_know_the_pooling():
    plain = preparation_record(AveragePoold("image", 2))
    domains = preparation_record([DomainSpacingd("image", {"a": [1, 1, 1]}), AveragePoold("image", 2)])
    older = {"spacing": {"a": [1.0, 1.0, 1.0]}}  # as it was written for the same transforms
    for new in (plain, domains):
        old = {name: value for name, value in new.items() if name != "pooling"}
        assert compare_preparation(old, new) == compare_preparation(new, old) == []
        assert compare_preparation(old | older, new) == []
    assert len(compare_preparation(older, preparation_record(Spacingd("image", (2, 2, 2))))) == 1


def test_newer_records_are_refused():
    with pytest.raises(ValueError, match="upgrade"):
        compare_preparation({"format": 2}, {})


def test_another_task_is_a_difference_where_both_are_known():
    lung, liver, none = (preparation_record(pipeline(), task=task) for task in ("lung", "liver", None))
    (sentence,) = compare_preparation(lung, liver)
    assert sentence == "it was made with task lung, the task has liver (id `task`)."
    assert compare_preparation(lung, none) == compare_preparation(none, lung) == []
