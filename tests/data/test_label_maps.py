from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import common.data.label_maps as module
from common.data import (
    class_of_label,
    fluid_labels,
    label_map,
    label_names,
    labels_written_in,
    num_classes,
    sided_labels,
    surrounding_labels,
)
from common.transforms import MapLabelsd

# Of other sets than brain MRI with its structures.
OTHERS = ("brats2020", "btcv", "visceral", *(name for name in module.LABEL_SCHEMES if name.startswith("msd_")))
LABEL_SCHEMES = tuple(name for name in module.LABEL_SCHEMES if name not in ("task", *OTHERS))
TASKS = module.TASKS
SEG35 = [0, *range(1, 19), 0, *range(19, 34), 0]  # class of structures33 for the labels 1..35, plexuses without one


def inverse(groups: dict[int, list[int]]) -> dict[int, int]:
    return {source: target for target, labels in groups.items() for source in labels}


def test_the_tables_of_the_package_are_the_known_label_schemes():
    files = {p.stem for p in Path(module.__file__).with_name("label_maps").glob("*.json")}
    assert files == {*LABEL_SCHEMES, *OTHERS, "structures", "classes"}


@pytest.mark.parametrize(("task", "count"), [("skull", 1), ("structures4", 4), ("structures33", 33)])
@pytest.mark.parametrize("label_scheme", LABEL_SCHEMES)
def test_every_class_is_there_and_no_label_is_in_two(label_scheme, task, count):
    if (label_scheme, task) in {("binary", "structures4"), ("binary", "structures33"), ("oasis_seg4", "structures33")}:
        with pytest.raises(ValueError, match=f"{label_scheme!r} hold no class of the task {task!r}"):
            label_map(label_scheme, task)
        return
    groups = label_map(label_scheme, task)
    assert list(groups) == list(label_names(task)) == list(range(count + 1))
    labels = [x for group in groups.values() for x in group]
    assert len(labels) == len(set(labels)) and min(labels) > 0
    # Every label that the label scheme knows has a place, in class 0 where the task leaves it out.
    assert sorted(labels) == sorted(label_map(label_scheme, "skull")[1] + surrounding_labels(label_scheme))
    assert groups[0] == sorted(groups[0]) and 0 not in groups[0]


@pytest.mark.parametrize("task", TASKS)
def test_the_classes_of_a_task_are_themselves(task):
    groups = label_map("task", task)
    assert list(groups) == list(label_names(task)) and inverse(groups) == {k: k for k in groups if k}
    mapped = MapLabelsd("label", groups, "error")({"label": torch.arange(len(groups))})["label"]
    assert mapped.tolist() == list(range(len(groups)))
    with pytest.raises(ValueError, match=f"no class names .{len(groups)}"):
        MapLabelsd("label", groups, "error")({"label": torch.tensor([len(groups)])})


def test_skull_is_what_has_a_tissue():
    for label_scheme in LABEL_SCHEMES:
        if label_scheme != "binary":
            tissues = label_map(label_scheme, "structures4")
            assert sorted(x for c, group in tissues.items() if c for x in group) == label_map(label_scheme, "skull")[1]
            assert tissues[0] == label_map(label_scheme, "skull")[0] == surrounding_labels(label_scheme)
    assert label_map("binary", "skull") == {0: [], 1: list(range(1, 256))}


@pytest.mark.parametrize(
    ("label_scheme", "background"),
    [
        # Choroid plexuses.
        ("oasis_seg35", {19, 35}),
        # CSF, choroid plexuses, fifth ventricle, hypointensities, chiasm, vermis, corpus callosum; skull, head.
        ("freesurfer", {24, 31, 63, 72, 77, 80, 81, 82, 85, 172, 251, 252, 253, 254, 255, 165, 258}),
        # CSF and chiasm, vermis, basal forebrain.
        ("malpem", {18, *range(35, 41)}),
        ("dlmuse", {1, 46, 69, 71, 72, 73, 75, 76, 95}),
    ],
)
def test_structures33_leaves_known_labels_to_the_background(label_scheme, background):
    groups = label_map(label_scheme, "structures33")
    assert set(groups[0]) == background
    assert not background & {x for index, group in groups.items() if index > 0 for x in group}


def test_oasis_seg35():
    assert inverse(label_map("oasis_seg35", "structures33")) == {i: c for i, c in enumerate(SEG35) if i}
    assert label_map("oasis_seg35", "skull") == {0: [], 1: list(range(1, 36))}
    assert label_map("oasis_seg4", "structures4") == {0: [], 1: [1], 2: [2], 3: [3], 4: [4]}


def test_all_of_malpem_has_a_class():
    assert label_map("malpem", "skull") == {0: [], 1: list(range(1, 139))}


def test_dlmuse_has_the_148_labels_of_its_masks():
    assert len(label_map("dlmuse", "skull")[1]) == 148


# One region in each label scheme, written here by hand: (FreeSurfer, seg35, MALP-EM, MUSE).
REGIONS = {
    "left hippocampus": (17, 14, 20, 48),
    "right hippocampus": (53, 30, 19, 47),
    "left lateral ventricle": (4, 3, 24, 52),
    "right inferior lateral ventricle": (44, 23, 21, 49),
    "brain stem": (16, 13, 7, 35),
    "right thalamus": (49, 26, 29, 59),
    "left cerebellar cortex": (8, 6, 11, 39),
    "right cerebellar white matter": (46, 24, 12, 40),
    "left ventral diencephalon": (28, 17, 32, 62),
    "right accumbens": (58, 32, 3, 23),
    "left pallidum": (13, 10, 26, 56),
    "third ventricle": (14, 11, 1, 4),
    "fourth ventricle": (15, 12, 2, 11),
    "right precuneus, as cortex": (2025, 21, 101, 168),
    "left superior temporal gyrus, as cortex": (1030, 2, 132, 201),
    "left white matter": (2, 1, 17, 82),
}


@pytest.mark.parametrize("task", ["structures4", "structures33"])
@pytest.mark.parametrize("region", REGIONS)
def test_one_region_has_one_class_in_all_label_schemes(region, task):
    label_schemes = ("freesurfer", "oasis_seg35", "malpem", "dlmuse")
    classes = {inverse(label_map(n, task))[label] for n, label in zip(label_schemes, REGIONS[region], strict=True)}
    assert len(classes) == 1
    if task == "structures33":
        assert classes == {SEG35[REGIONS[region][1]]}


@pytest.mark.parametrize(
    ("labels", "tissue"),
    [
        ([3, 42, 1035], 1),
        ([8, 47, 10, 11, 12, 13, 17, 18, 26, 172], 2),
        ([2, 41, 7, 46, 16, 28, 60, 85, 253], 3),
        ([4, 5, 14, 15, 24, 43, 44, 31, 63, 30, 62, 72], 4),
    ],
)
def test_tissues_are_those_of_freesurfer(labels, tissue):
    assert {inverse(label_map("freesurfer", "structures4"))[x] for x in labels} == {tissue}


def test_structures_that_a_label_scheme_lacks_are_empty():
    names = label_names("structures33")
    assert [names[i] for i, labels in label_map("dlmuse", "structures33").items() if not labels] == [
        "Left-Vessel",
        "Right-Vessel",
    ]
    assert all(label_map("malpem", "structures33").values())


ORGANS13 = [
    "spleen", "right kidney", "left kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta",
    "inferior vena cava", "portal and splenic veins", "pancreas", "right adrenal gland", "left adrenal gland",
]  # fmt: skip


def test_the_organs_of_btcv():
    assert list(label_names("organs13").values()) == ["background", *ORGANS13]
    assert label_map("btcv", "organs13") == {0: []} | {i: [i] for i in range(1, 14)}
    # Numbers of nnFormer's evaluation (nnformer/inference_synapse.py); the five other organs are known background.
    assert label_map("btcv", "organs8") == {
        0: [5, 9, 10, 12, 13], 1: [1], 2: [2], 3: [3], 4: [4], 5: [6], 6: [7], 7: [8], 8: [11],
    }  # fmt: skip
    names = ["spleen", "right kidney", "left kidney", "gallbladder", "liver", "stomach", "aorta", "pancreas"]
    assert list(label_names("organs8").values()) == ["background", *names]
    assert [ORGANS13[label[0] - 1] for c, label in label_map("btcv", "organs8").items() if c] == names


def test_the_decathlon_label_schemes_are_their_tasks_classes():
    assert label_map("msd_hippocampus", "hippocampus") == {0: [], 1: [1], 2: [2]}
    assert label_names("hippocampus") == {0: "background", 1: "anterior", 2: "posterior"}
    assert label_map("msd_brats", "brats") == {0: [], 1: [1], 2: [2], 3: [3]}
    assert list(label_names("brats").values())[1:] == ["edema", "non-enhancing tumour core", "enhancing tumour"]
    for name in ("heart", "prostate", "pancreas", "vessel", "spleen"):
        groups = label_map(f"msd_{name}", name)
        assert groups == {0: [], **{index: [index] for index in range(1, len(groups))}}
    # LiTS has the tumour apart; the liver is both.
    assert label_map("msd_liver", "liver") == {0: [], 1: [1, 2]}


def test_the_lungs_of_visceral():
    groups = label_map("visceral", "lung")
    assert groups[1] == [1302, 1326] and len(groups[0]) == 18


def test_brats_itself_has_other_numbers_than_the_decathlons_brats():
    # Menze et al.: 1 non-enhancing core, 2 edema, 4 enhancing tumour, and no 3.
    assert label_map("brats2020", "brats") == {0: [], 1: [2], 2: [1], 3: [4]}
    mask = torch.tensor([0, 1, 2, 4])
    mapped = MapLabelsd("label", label_map("brats2020", "brats"), "error")
    assert mapped({"label": mask})["label"].tolist() == [0, 2, 1, 3]
    with pytest.raises(ValueError, match="no class names"):  # a mask of the Decathlon
        mapped({"label": torch.tensor([0, 1, 2, 3])})


@pytest.mark.parametrize("label_scheme", OTHERS)
@pytest.mark.parametrize("task", TASKS)
def test_other_sets_have_their_own_tasks_only(label_scheme, task):
    organs = ("organs8", "organs13")  # which have the name of an organ in common with these
    own = {
        "btcv": (*organs, "liver", "pancreas", "spleen"),
        "visceral": (*organs, "liver", "lung", "pancreas", "spleen"),
        "brats2020": ("brats",),
        "msd_brats": ("brats",),
        "msd_heart": ("heart",),
        "msd_hippocampus": ("hippocampus",),
        "msd_liver": (*organs, "liver"),
        "msd_pancreas": (*organs, "pancreas"),
        "msd_prostate": ("prostate",),
        "msd_spleen": (*organs, "spleen"),
        "msd_vessel": ("vessel",),
    }
    if task in own[label_scheme]:
        assert list(label_map(label_scheme, task)) == list(label_names(task))
        return
    with pytest.raises(ValueError, match=f"{label_scheme!r} hold no class of the task {task!r}"):
        label_map(label_scheme, task)


@pytest.mark.parametrize("task", [task for task in TASKS if not task.startswith(("structures", "skull"))])
def test_brain_structures_are_no_classes_of_the_other_tasks(task):
    for label_scheme in LABEL_SCHEMES:
        with pytest.raises(ValueError, match=f"{label_scheme!r} hold no class of the task {task!r}"):
            label_map(label_scheme, task)


@pytest.mark.parametrize(
    ("label_scheme", "task", "message"),
    [
        ("aseg", "skull", "Unknown label scheme 'aseg'; known are .*freesurfer.*, task"),
        ("dlmuse", "structures5", "Unknown task 'structures5'; known are skull"),
    ],
)
def test_unknown_names_list_the_known(label_scheme, task, message):
    with pytest.raises(ValueError, match=message):
        label_map(label_scheme, task)


def test_results_are_own_copies_and_survive_json():
    label_map("malpem", "structures4")[1].append(999)
    groups = label_map("malpem", "structures4")
    assert 999 not in groups[1]
    assert {int(k): v for k, v in json.loads(json.dumps(groups)).items()} == groups


@pytest.mark.parametrize("label_scheme", [name for name in module.LABEL_SCHEMES if name != "task"])
def test_every_task_knows_the_same_labels(label_scheme):
    fits = 0
    for task in TASKS:
        try:
            groups = label_map(label_scheme, task)
        except ValueError:
            continue
        fits += 1
        assert {0}.union(*groups.values()) == module.known_labels(label_scheme)
    assert fits


def test_class_of_label_turns_a_map_round():
    groups = label_map("freesurfer", "structures34")
    table = class_of_label(groups)
    assert all(table[label] == number for number, labels in groups.items() for label in labels)
    assert table[24] == 34 and label_names("structures34")[34] == "CSF" and table[165] == table[0] == 0
    assert class_of_label({0: [], 1: [2], 2: [4, 1]}) == [0, 2, 1, 0, 2]


def test_number_of_classes():
    assert [num_classes(task) for task in TASKS] == [len(label_names(task)) for task in TASKS]
    assert (num_classes("skull"), num_classes("structures33"), num_classes("organs8")) == (2, 34, 9)
    with pytest.raises(ValueError, match=r"Unknown task 'mine'; known are .* For a task of your own set num_classes"):
        num_classes("mine")


def test_a_number_of_classes_that_is_not_the_tasks_is_refused():
    assert label_map("binary", "skull", 2) == label_map("binary", "skull")
    for classes in (1, 3):
        with pytest.raises(ValueError, match=rf"num_classes is {classes}, but the task 'skull' has 2 classes with the"):
            label_map("binary", "skull", classes)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("label_scheme", module.LABEL_SCHEMES)
def test_a_mirrored_structure_is_the_same_on_the_other_side(label_scheme, task):
    pairs = sided_labels(label_scheme, task)
    labels = [label for pair in pairs for label in pair]
    assert len(labels) == len(set(labels))
    try:
        groups = label_map(label_scheme, task)
    except ValueError:
        return
    names, other = label_names(task), dict(pairs) | {right: left for left, right in pairs}
    for number, members in groups.items():
        mirrored = {other.get(label, label) for label in members}
        name = names[number]
        for one, two in (("Left-", "Right-"), ("left kidney", "right kidney"), ("left adrenal", "right adrenal")):
            name = name.replace(one, "?").replace(two, one).replace("?", two)
        assert mirrored == set(groups[next(n for n in names if names[n] == name)]), names[number]


def test_sides_fluid_and_surroundings_of_a_label_scheme():
    assert {(2, 41), (17, 53), (1035, 2035)} <= {tuple(pair) for pair in sided_labels("freesurfer", "structures33")}
    assert sided_labels("task", "acdc") == sided_labels("msd_heart", "heart") == []
    assert sided_labels("task", "organs13") == [[3, 2], [13, 12]]
    assert fluid_labels("freesurfer", "structures4") == [24] and surrounding_labels("freesurfer") == [165, 258]
    assert fluid_labels("task", "structures34") == [34] and fluid_labels("oasis_seg4", "structures4") == [4]
    assert fluid_labels("task", "acdc") == surrounding_labels("dlmuse") == surrounding_labels("task") == []
    with pytest.raises(ValueError, match="label scheme 'fs'"):
        surrounding_labels("fs")


def test_labels_written_in_other_numbers_are_refused():
    assert labels_written_in("freesurfer", "freesurfer", [[3, 42]]) == [[3, 42]]
    with pytest.raises(ValueError, match=r"numbered as 'dlmuse' and the labels \[\[3, 42\]\] as 'freesurfer'"):
        labels_written_in("freesurfer", "dlmuse", [[3, 42]])
