from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from common.data import label_map
from common.data.sample import make_sample, make_subject
from common.data.sample.anatomy import ANATOMY


@pytest.fixture(scope="module")
def subject():
    return make_subject(0, spacing=4.0, lesion=False)


def brain(subject):
    start = np.rint((subject["brain_affine"][:3, 3] - subject["head_affine"][:3, 3]) / 4).astype(int)
    box = tuple(slice(a, a + n) for a, n in zip(start, subject["structures4"].shape, strict=True))
    return subject["anatomy"][box]


def test_every_structure_is_there(subject):
    assert set(np.unique(subject["anatomy"]).tolist()) <= set(ANATOMY)
    missing = set(ANATOMY) - set(np.unique(subject["anatomy"]).tolist())
    assert not missing, [ANATOMY[label] for label in missing]


def test_tissues_are_the_subjects_own(subject):
    """By FreeSurfer's tissue classes the finer labels are the four that the subject has, but for the ventral
    diencephalon, which is white matter there and takes what grey matter lies near no structure."""
    fine, tissue = brain(subject), subject["structures4"]
    table = label_map("freesurfer", "structures4")
    for number, labels in table.items():
        inside = np.isin(fine, labels) & (tissue > 0)
        if number == 0:
            continue
        assert (tissue[inside & ~np.isin(fine, (28, 60))] == number).all()
    assert (fine[tissue > 0] > 0).all()


def test_sides_and_places(subject):
    affine, labels = subject["head_affine"], subject["anatomy"]

    def centre(*numbers):
        return nib.affines.apply_affine(affine, np.argwhere(np.isin(labels, numbers)).mean(0))

    for left, right in ((2, 41), (3, 42), (10, 49), (17, 53), (8, 47), (4, 43)):
        a, b = centre(left), centre(right)
        assert a[0] < b[0] - 5 and np.abs(a[1:] - b[1:]).max() < 12
        volumes = [(labels == number).sum() for number in (left, right)]
        assert 0.6 < volumes[0] / volumes[1] < 1.6
    assert centre(8, 47)[2] < centre(10, 49)[2] < centre(3, 42)[2] + 20  # the cerebellum lies below
    assert centre(8, 47)[1] < centre(16)[1] < centre(26, 58)[1]  # and behind the brain stem
    assert centre(12, 51)[0] - centre(10, 49)[0] < 20


def test_the_head_has_layers(subject):
    labels = subject["anatomy"]
    x, y = labels.shape[0] // 2, labels.shape[1] // 2
    ray = labels[x, y, labels.shape[2] // 2 :][::-1]
    order = [int(v) for i, v in enumerate(ray) if i == 0 or v != ray[i - 1]]
    assert order[:3] == [0, 258, 165] and 24 in order[3:5]


def test_maps_of_test_subjects_are_in_no_list(tmp_path):
    folder = tmp_path / "sample"
    make_sample(folder, 3, 1, spacing=4.0, progress=False)
    lists = json.loads((folder / "anatomy.json").read_text())
    test = {item["subject"] for item in json.loads((folder / "structures4.json").read_text())["test"]}
    seen = {item["subject"] for item in lists["training"] + lists["validation"]}
    assert test and not test & seen and not lists["test"]
    for item in lists["training"]:
        stored = nib.load(folder / item["image"])
        assert stored.get_data_dtype() == np.uint16 and set(np.unique(stored.dataobj)) <= set(ANATOMY)
