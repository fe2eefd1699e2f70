from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from common.data import label_map
from common.transforms import MapLabelsd

GROUPS = {1: [3, 42], 2: [10, 2035], 3: []}


def slow(labels, groups, other=0):
    result = []
    for value in labels.flatten().tolist():
        classes = [int(c) for c, sources in groups.items() if value in sources]
        result.append(classes[0] if classes else 0 if value == 0 else other)
    return torch.tensor(result).view(labels.shape)


def draw(values, dtype=torch.float32, shape=(1, 4, 5, 6)):
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor(values)
    return values[torch.randint(len(values), shape, generator=generator)].to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int16, torch.int64])
@pytest.mark.parametrize("other", [0, 5])
@pytest.mark.parametrize("make", [lambda t: t, copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))])
def test_against_a_loop_over_voxels(dtype, other, make):
    labels = draw([0, 3, 42, 10, 2035, 7, 3000, 2036, 2037, -4, -2034], dtype)  # -2034 from the end of the table is 3
    result = make(MapLabelsd("label", GROUPS, other=other))({"label": labels})["label"]
    assert result.dtype == dtype
    assert torch.equal(result.long(), slow(labels, GROUPS, other))


@pytest.mark.parametrize("label_scheme", ["dlmuse", "malpem", "freesurfer"])
def test_the_package_tables(label_scheme):
    groups = label_map(label_scheme, "structures4")
    labels = draw(label_map(label_scheme, "skull")[1] + [0])
    result = MapLabelsd("label", groups, other="error")({"label": labels})["label"]
    assert torch.equal(result.long(), slow(labels, groups))


def test_json_keys_and_uint8():
    groups = json.loads(json.dumps(GROUPS))
    result = MapLabelsd("label", groups)({"label": torch.tensor([3, 42, 10, 255], dtype=torch.uint8)})["label"]
    assert result.tolist() == [1, 1, 2, 0] and result.dtype == torch.uint8


def test_metadata_and_input_stay():
    affine = torch.diag(torch.tensor([2.0, 2, 2, 1], dtype=torch.float64))
    label = MetaTensor(draw([0, 3]), affine=affine, meta={"filename_or_obj": "a.nii.gz"})
    before = label.clone()
    result = MapLabelsd("label", GROUPS)({"label": label})["label"]
    assert isinstance(result, MetaTensor) and torch.equal(result.affine, affine)
    assert result.meta["filename_or_obj"] == "a.nii.gz" and torch.equal(label, before)


def test_numpy_stays_numpy():
    result = MapLabelsd("label", GROUPS)({"label": np.array([[3, 10]], np.int32)})["label"]
    assert isinstance(result, np.ndarray) and result.tolist() == [[1, 2]] and result.dtype == np.int32


def test_a_group_can_claim_the_background():
    assert MapLabelsd("label", {2: [0], 1: [5]})({"label": torch.tensor([0, 5, 6])})["label"].tolist() == [2, 1, 0]


def test_unknown_labels_are_named_with_the_file():
    label = MetaTensor(draw([0, 3, 7, 3000, -4]), meta={"filename_or_obj": "/data/label.nii.gz"})
    with pytest.raises(ValueError, match=r"^/data/label.nii.gz has labels that no class names \(-4, 7, 3000\)"):
        MapLabelsd("label", GROUPS, other="error")({"label": label})
    MapLabelsd("label", GROUPS, other="error")({"label": draw([0, 3, 42])})


@pytest.mark.parametrize("label_scheme", ["dlmuse", "malpem", "freesurfer", "oasis_seg35"])
def test_labels_that_a_task_leaves_out_are_known(label_scheme):
    groups = label_map(label_scheme, "structures33")
    transform = MapLabelsd("label", groups, other="error")
    labels = draw([0, *groups[0], groups[1][0]])
    assert torch.equal(transform({"label": labels})["label"].long(), slow(labels, groups))
    assert set(labels[transform({"label": labels})["label"] > 0].tolist()) == {groups[1][0]}
    with pytest.raises(ValueError, match=r"no class names \(9999\)"):
        transform({"label": draw([0, *groups[0], 9999])})


DOMAINS = {"oasis1": {1: [3, 42], 2: [10]}, "adni": {1: [10], 2: [3], 3: [7]}}


@pytest.mark.parametrize("make", [lambda g: g, lambda g: json.loads(json.dumps(g))])
@pytest.mark.parametrize("key", ["domain", "site"])
def test_groups_by_domain(make, key):
    transform = MapLabelsd(["label", "seg"], make(DOMAINS), other=5, domain_key=key)
    labels = draw([0, 3, 42, 10, 7, 3000])
    for domain, groups in DOMAINS.items():
        result = transform({"label": labels, "seg": labels.short(), key: domain})
        assert torch.equal(result["label"].long(), slow(labels, groups, 5))
        assert torch.equal(result["seg"].long(), slow(labels, groups, 5)) and result[key] == domain


def test_unknown_labels_are_those_of_the_domain():
    transform = MapLabelsd("label", DOMAINS, other="error")
    transform({"label": draw([0, 7, 10]), "domain": "adni"})
    with pytest.raises(ValueError, match=r"no class of the domain 'oasis1' names \(7\): set that domain's `num_cl"):
        transform({"label": draw([0, 7, 10]), "domain": "oasis1"})


@pytest.mark.parametrize(("item", "named"), [({}, "None"), ({"domain": "ixi"}, "'ixi'")])
def test_a_domain_without_groups(item, named):
    label = MetaTensor(draw([0, 3]), meta={"filename_or_obj": "/data/label.nii.gz"})
    with pytest.raises(
        ValueError,
        match=f"^/data/label.nii.gz is of the domain {named}, .* no label groups; .* oasis1, adni: give .*`domain`",
    ):
        MapLabelsd("label", DOMAINS)({"label": label, **item})


def test_the_domain_does_not_matter_for_one_label_scheme():
    result = MapLabelsd("label", GROUPS)({"label": torch.tensor([3, 10]), "domain": "ixi"})
    assert result["label"].tolist() == [1, 2]


def test_two_classes_of_one_label_in_a_domain():
    with pytest.raises(ValueError, match="`groups` names the label 3 in two classes"):
        MapLabelsd("label", {"a": {1: [3]}, "b": {1: [3], 2: [3]}})


def test_labels_that_are_no_whole_numbers():
    with pytest.raises(ValueError, match=r"key 'label' has labels that are not whole numbers \(2.5\)"):
        MapLabelsd("label", GROUPS)({"label": torch.tensor([3.0, 2.5])})


@pytest.mark.parametrize(("groups", "other"), [({1: [3], 2: [3]}, 0), ({1: [-3]}, 0), ({1: [3]}, "fail"), ({}, -1)])
def test_wrong_arguments(groups, other):
    with pytest.raises(ValueError, match=r"`groups`|`other`"):
        MapLabelsd("label", groups, other)
