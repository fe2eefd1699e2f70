from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import Compose

from common.data import label_map, load_datalist
from common.data.prepare import prepare
from common.transforms import CheckVolumed, LoadVolumed, MapLabelsd

DATA = Path(__file__).parents[3] / "shared" / "data"


def folder(name: str) -> Path:
    path = DATA / name
    if not path.is_dir():
        pytest.skip(f"the real scans are not at {path}")
    return path


def test_ixi(tmp_path):
    output = tmp_path / "ixi.json"
    content = prepare("ixi", folder("ixi"), output)
    lists = load_datalist(output)
    items = [x for section in lists.values() for x in section]
    assert {k: len(v) for k, v in lists.items()} == {"training": 102, "validation": 14, "test": 29}
    assert len({x["subject"] for x in items}) == 145 and all(x["domain"] == "ixi" for x in items)
    ages = [x["age"] for k in lists for x in content[k] if "age" in x]
    assert len(ages) == 141 and min(ages) > 19 and max(ages) < 90
    assert len(load_datalist(output, fraction=0.1)["training"]) == 10


@pytest.mark.parametrize("task", ["skull", "structures4", "structures33"])
def test_ixi_labels_have_the_classes_of_each_task(tmp_path, task):
    prepare("ixi", folder("ixi"), tmp_path / "ixi.json", check="none")
    groups = label_map("dlmuse", task)
    transform = Compose(
        [
            LoadVolumed(["image", "label"], ensure_channel_first=True),
            MapLabelsd("label", groups, other="error"),
            CheckVolumed("image", "label", num_classes=len(groups)),
        ]
    )
    for x in load_datalist(tmp_path / "ixi.json", check="none")["test"][:3]:
        values = np.unique(np.asarray(transform(x)["label"]))
        assert set(values) == {0} | {c for c, labels in groups.items() if labels}


def test_left_and_right_are_where_they_should_be(tmp_path):
    prepare("ixi", folder("ixi"), tmp_path / "ixi.json", check="none")
    groups = label_map("dlmuse", "structures33")
    label = nib.load(load_datalist(tmp_path / "ixi.json", check="none")["training"][0]["label"])
    data = np.asarray(label.dataobj)
    left, right = (np.argwhere(np.isin(data, groups[c])).mean(0) for c in (2, 20))  # the two cortices
    assert nib.aff2axcodes(label.affine) == ("R", "A", "S") and left[0] + 10 < right[0]


def test_hippocampus(tmp_path):
    output = tmp_path / "hippocampus.json"
    prepare("decathlon", folder("hippocampus"), output)
    lists = load_datalist(output, check="full", num_classes=3)
    assert {k: len(v) for k, v in lists.items()} == {"training": 140, "validation": 20, "test": 40}
    assert json.loads(output.read_text())["left_out"] == 0
    folds = [load_datalist(output, fold=k, check="none") for k in range(5)]
    assert sorted(len(f["validation"]) for f in folds) == [32] * 5
    assert all(f["test"] == lists["test"] for f in folds)


def test_hippocampus_with_a_split_in_numbers(tmp_path):
    output = tmp_path / "hippocampus.json"
    options = {"validation": 20, "test": 40, "seed": 0, "domain": "hippocampus", "label_scheme": "msd_hippocampus"}
    content = prepare("decathlon", folder("hippocampus"), output, **options)
    lists = load_datalist(output, label_scheme="msd_hippocampus", check="none")
    assert {k: len(v) for k, v in lists.items()} == {"training": 140, "validation": 20, "test": 40}
    assert {x["domain"] for items in lists.values() for x in items} == {"hippocampus"}
    subjects = {k: {x["subject"] for x in v} for k, v in lists.items()}
    assert len(set.union(*subjects.values())) == 200
    prepare("decathlon", folder("hippocampus"), tmp_path / "again.json", **options)
    assert (tmp_path / "again.json").read_text() == output.read_text()
    groups = label_map(content["label_scheme"], "hippocampus")
    transform = Compose([LoadVolumed("label", ensure_channel_first=True), MapLabelsd("label", groups, other="error")])
    for x in lists["test"][:3]:
        assert set(np.unique(np.asarray(transform(x)["label"]))) == {0, 1, 2}
