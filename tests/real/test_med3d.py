"""Two real sets as domains through the pre-training transforms of `med3d`, as its configuration states them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from common.data.prepare import prepare

DATA = Path(__file__).parents[3] / "shared" / "data"
CONFIGS = Path(__file__).parents[2] / "bundles" / "med3d" / "configs"


def test_two_domains(tmp_path):
    for name, kind, label_scheme in (("hippocampus", "decathlon", "msd_hippocampus"), ("ixi", "ixi", "dlmuse")):
        if not (DATA / name).is_dir():
            pytest.skip(f"the real scans are not at {DATA / name}")
        prepare(kind, DATA / name, tmp_path / f"{name}.json", check="none", label_scheme=label_scheme)
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / "pretrain.json"))
    parser["pretrain_datalist"] = [
        {"name": "hippocampus", "datalist": str(tmp_path / "hippocampus.json"), "num_classes": 3},
        {"name": "brains", "datalist": str(tmp_path / "ixi.json"), "label_scheme": "dlmuse", "task": "structures4"},
    ]
    parser["data#check"] = "none"
    parser["image_size"] = parser["roi_size"] = [48, 48, 48]
    parser.parse()
    assert parser.get_parsed_content("domain_spacings") == {"hippocampus": [1, 1, 1], "brains": [2, 2, 2]}
    assert parser.get_parsed_content("branch_classes") == [3, 5]
    items = parser.get_parsed_content("data")["training"]
    prepare_whole = parser.get_parsed_content("validate#preprocessing")
    prepare_crop = parser.get_parsed_content("train#preprocessing")
    for domain, classes in (("hippocampus", 3), ("brains", 5)):
        item = next(x for x in items if x["domain"] == domain)
        whole, (crop,) = prepare_whole(dict(item)), prepare_crop(dict(item))
        assert crop["image"].shape == crop["label"].shape == (1, 48, 48, 48)
        assert whole["image"].shape == whole["label"].shape
        assert set(torch.unique(whole["label"]).tolist()) - {-1} == set(range(classes))  # -1 is padding
        inside = whole["image"][whole["image"] > whole["image"].min()]  # without air and padding
        assert inside.isfinite().all() and 0.9 < float(inside.std()) < 1.1
    brain = whole["image"], whole["label"]
    means = [brain[0][brain[1] == label].mean() for label in range(5)]
    assert means[4] < means[1] < means[3]  # in T1, CSF is darker than cortex and white matter brightest
