"""The rules of an automatic plan: against nnU-Net's published plans, at their edges, and for their refusals."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from common.auto.machine import Machine
from common.auto.plan import (
    CROP_VOXELS,
    SHIPPED,
    Plan,
    PlanError,
    Prior,
    Speed,
    add_time,
    class_labels,
    class_names,
    crop_and_network,
    grid,
    plan_study,
    round_down,
    split_sizes,
    wider_filters,
)
from common.auto.study import Case, Study
from common.fingerprint import ScanFacts

CPU, GPU = Machine("cpu", 2), Machine("cuda", 8, 24.0)


def study(
    shape=(35, 50, 36),
    spacing=(1.0, 1.0, 1.0),
    modality="MR",
    cases=10,
    unlabelled=0,
    channels=1,
    orientation="RAS",
    **given,
):
    facts = ScanFacts(
        "scan.nii.gz", channels, shape, spacing, orientation, (-900.0, 0.0, 10.0, 60.0, 304.0) * channels, 0.0
    )
    facts = SimpleNamespace(**facts.__dict__, modality=modality)
    masks = [Path(f"mask{n}.nii.gz") for n in range(cases)] + [None] * unlabelled
    made = [
        Case(f"case{n}", f"subject{n}", tuple(Path(f"{n}_{c}.nii.gz") for c in range(channels)), mask, facts)
        for n, mask in enumerate(masks)
    ]
    names = tuple(f"channel {c}" for c in range(channels))
    return Study("two folders", tuple(made), names, **{"labels": {5: "ventricle", 9: "wall"}, **given})


@pytest.mark.parametrize(
    ("median", "spacing", "levels", "crop", "strides", "first_kernel"),
    [
        # nnU-Net's published 3-D plans (Isensee et al., 2021, supplement): Task04 Hippocampus and ACDC, axes turned.
        ((35, 50, 36), (1.0, 1.0, 1.0), 6, [40, 56, 40], [[1, 1, 1], *[[2, 2, 2]] * 3], [3, 3, 3]),
        (
            (208, 237, 18),
            (1.56, 1.56, 5.0),
            6,
            [224, 256, 20],
            [[1, 1, 1], [2, 2, 1], [2, 2, 2], [2, 2, 2], [2, 2, 1], [2, 2, 1]],
            [3, 3, 1],
        ),
    ],
)
def test_crop_and_network_are_those_that_nnunet_published(median, spacing, levels, crop, strides, first_kernel):
    found, found_strides, kernels = crop_and_network(median, spacing, 10**9, levels)
    assert (found, found_strides, kernels[0]) == (crop, strides, first_kernel)
    assert len(kernels) == len(strides)


@pytest.mark.parametrize("image", [(160, 192, 160), (512, 512, 40), (9, 300, 12), (4, 4, 4)])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 0.7, 5.0)])
def test_a_crop_fits_and_divides(image, spacing):
    crop, strides, _ = crop_and_network(image, spacing, 100_000, 5)
    whole = np.prod(strides, 0)
    assert (np.asarray(crop) % whole == 0).all()
    assert np.prod(crop) <= 100_000


def test_the_grid_is_the_median_and_grows_from_its_finest_axis():
    spacing, shape, reason = grid([(1, 1, 3), (1, 1, 3), (2, 2, 2)], [(64, 64, 20)] * 3, "cpu")
    assert (spacing, shape) == ([1.0, 1.0, 3.0], [64, 64, 20])
    assert reason == "the median of the scans"
    spacing, shape, reason = grid([(0.5, 0.5, 5.0)], [(512, 512, 100)], "cpu")
    assert spacing[0] == spacing[1] < spacing[2] == 5.0  # only what is fine is given up
    assert np.prod(shape) < 1.05 * 750_000
    assert "at most 750,000 voxels" in reason


def test_a_plan_is_made_of_labels_channels_and_modality():
    made = plan_study(study(channels=2), CPU).overlay
    assert made["num_classes"] == 3
    assert made["label_map"] == {"0": [0], "1": [5], "2": [9]}
    assert made["structure_names"] == {"0": "background", "1": "ventricle", "2": "wall"}
    assert made["in_channels"] == 2
    assert made["intensity"]["_target_"].endswith("NormalizeForegroundd")
    window = plan_study(study(modality="CT"), CPU).overlay["intensity"]
    assert (window["a_min"], window["a_max"]) == (-900.0, 310.0)


def test_axes_are_those_that_training_turns_the_scans_to():
    stored = plan_study(study((10, 216, 256), (10.0, 1.0, 1.5), orientation="IPR"), CPU).overlay
    assert stored["spacing"] == [1.5, 1.0, 10.0]
    assert stored["rotate_range"] == [0.0, 0.0, 0.5236]


def test_thick_slices_are_turned_within_their_plane_only():
    made = plan_study(study((216, 256, 10), (1.0, 1.0, 10.0)), CPU)
    assert made.overlay["rotate_range"] == [0.0, 0.0, 0.5236]
    assert made.overlay["scale_range"][2] == [0.0, 0.0]
    assert np.prod(made.overlay["roi_size"]) <= CROP_VOXELS["cpu"]
    assert "rotate_range" not in plan_study(study(), CPU).overlay


def test_the_shipped_encoder_is_a_candidate_for_volumes_of_a_heads_size_alone():
    head = plan_study(study((160, 192, 160)), CPU)
    assert head.candidates == ("scratch", SHIPPED)
    assert head.overlay["spacing"] == [2.0, 2.0, 2.0]
    assert head.overlay["segmentation_net"]["filters"] == [12, 24, 48, 96, 160]
    for other in (
        study((160, 192, 160), channels=2),
        study((160, 192, 160), modality="CT"),
        study((216, 256, 10), (1.0, 1.0, 10.0)),
        study((35, 50, 36)),
    ):
        assert plan_study(other, CPU).candidates == ("scratch",)


def test_the_network_of_a_head_takes_the_shipped_encoder():
    from monai.bundle import ConfigParser

    from common.weights import read_encoder

    overlay = plan_study(study((160, 192, 160), labels={1: "a"}), CPU).overlay
    encoder = ConfigParser(overlay).get_parsed_content("encoder")
    weights, _ = read_encoder(SHIPPED)
    own = encoder.state_dict()
    assert {name: value.shape for name, value in own.items()} == {n: weights[n].shape for n in own}


def test_small_crops_get_more_channels_at_no_more_cost():
    assert [wider_filters(n)[0] for n in (330_000, 90_000, 1_000)] == [12, 24, 32]
    assert wider_filters(90_000) == (24, 48, 96, 192, 320)
    assert plan_study(study(), CPU).overlay["segmentation_net"]["filters"] == [24, 48, 96, 192]


def test_a_smaller_machine_gets_a_smaller_crop():
    whole = plan_study(study((300, 300, 300)), GPU).overlay
    small = plan_study(study((300, 300, 300)), Machine("cuda", 8, 6.0)).overlay
    half = plan_study(study((300, 300, 300)), GPU, 0.5).overlay
    assert np.prod(small["roi_size"]) < np.prod(whole["roi_size"])
    assert np.prod(half["roi_size"]) < np.prod(whole["roi_size"])


COUNTS = {"training": 60, "validation": 20, "test": 20, "unlabelled": 0}


def test_time_sets_the_steps_and_a_trial_the_start():
    plan = plan_study(study((160, 192, 160)), CPU)
    speed = Speed(1.0, 2.0, 10.0, {"scratch": 0.4, SHIPPED: 0.7})
    timed = add_time(plan, speed, 1.0, COUNTS)
    spent = timed.steps * 1.0 + 5 * 20 * 2.0 + 20 * 2.0 + 50
    assert 0.85 * 3600 < spent <= 3600
    assert timed.start == SHIPPED
    assert timed.overlay["learning_rate"] == 0.001
    assert timed.overlay["max_epochs"] % timed.overlay["val_interval"] == 0
    turned = add_time(plan, Speed(1.0, 2.0, 10.0, {"scratch": 0.7, SHIPPED: 0.4}), 1.0, COUNTS)
    assert (turned.start, turned.overlay["learning_rate"]) == ("scratch", 0.004)
    assert [one.what for one in turned.decisions].count("start") == 1


def test_small_differences_of_timing_change_no_plan():
    plan = plan_study(study(), CPU)
    first = add_time(plan, Speed(0.500, 0.2, 10.0), 0.5, COUNTS)
    assert add_time(plan, Speed(0.502, 0.2, 10.0), 0.5, COUNTS).overlay == first.overlay
    assert [round_down(n) for n in (7, 99, 3319, 12345)] == [7, 99, 3300, 12000]


def test_too_little_time_is_refused():
    plan = plan_study(study(), CPU)
    with pytest.raises(PlanError, match=r"--hours 0.001 is too little: .* take about \S+ hours"):
        add_time(plan, Speed(1.0, 1.0, 10.0), 0.001, COUNTS)


def test_a_fifth_of_the_subjects_is_held_out_twice():
    assert [split_sizes(n) for n in (3, 5, 10, 500)] == [(1, 1), (1, 1), (2, 2), (20, 20)]


def test_a_plan_comes_back_from_its_files(tmp_path):
    plan = add_time(plan_study(study(), CPU), Speed(0.5, 0.2, 10.0), 0.5, COUNTS)
    content = json.loads(json.dumps(plan.to_json()))
    assert Plan.from_json(content, json.loads(json.dumps(plan.overlay))) == plan


def test_labels_of_a_known_scheme_become_structures_or_what_the_task_says():
    many = study(labels={n: f"region {n}" for n in range(1, 150)}, label_scheme="dlmuse")
    grouped = plan_study(many, CPU).overlay
    assert (grouped["task"], grouped["label_scheme"]) == ("structures34", "dlmuse")
    assert "label_map" not in grouped and len(class_names(grouped)) == 35
    tissues = plan_study(many, CPU, task="structures4").overlay
    assert class_names(tissues)[4] == "CSF" and len(class_labels(tissues)) == 5
    head = plan_study(study((80, 96, 80), (2.0, 2.0, 2.0), label_scheme="dlmuse"), CPU, task="structures4")
    assert head.candidates == ("scratch", SHIPPED) and head.overlay["encoder"]["heads"]
    assert "heads" not in plan_study(study((80, 96, 80), (2.0, 2.0, 2.0)), CPU).overlay["encoder"]
    with pytest.raises(PlanError, match="--task structures4: the masks follow no known label scheme"):
        plan_study(study(), CPU, task="structures4")
    with pytest.raises(PlanError, match="--task heads: "):
        plan_study(many, CPU, task="heads")


THEIRS = {
    "spacing": [3.0, 1.0, 2.0],
    "orientation": "SRA",
    "intensity": {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": True},
}


def test_images_are_prepared_as_those_of_a_chosen_encoder():
    """Sizes go by the axes of its orientation: the stored ones are right, front, up."""
    given = study((64, 80, 96), (1.0, 2.0, 1.5), orientation="RAS")
    own, plan = plan_study(given, CPU), plan_study(given, CPU, prior=Prior("theirs.safetensors", None, THEIRS))
    overlay = plan.overlay
    assert [overlay[name] for name in THEIRS] == list(THEIRS.values())
    assert overlay["image_size"] == [48, 64, 80]  # 144 mm up in 3, 64 mm right in 1, 160 mm front in 2
    said = {one.what: one for one in plan.decisions}
    for what, value in (
        ("voxel size", "3 x 1 x 2 mm"),
        ("orientation", "SRA"),
        ("intensities", "NormalizeIntensityd"),
    ):
        assert said[what].value == value
        assert said[what].reason == "as those of theirs.safetensors (--prepare_as)"
    assert plan.candidates == ("scratch",) and "only the preparation is taken" in said["start"].reason
    assert own.overlay["orientation"] == "RAS" and "orientation" not in {one.what for one in own.decisions}
    # of a part that the record does not state the plan has its own, along the same axes
    part = plan_study(given, CPU, prior=Prior("x", None, {"orientation": "SRA"})).overlay
    assert part["spacing"] == [own.overlay["spacing"][axis] for axis in (2, 0, 1)]
    assert part["intensity"] == own.overlay["intensity"]


def test_a_chosen_encoder_brings_its_network_and_is_tried():
    network = {"encoder": {"_target_": "E"}, "segmentation_net": {"_target_": "N"}, "roi_size": [96, 96, 96]}
    plan = plan_study(study(), CPU, prior=Prior("theirs.safetensors", ("networks/n.json", network)))
    assert plan.overlay["encoder"] == {"_target_": "E"} and plan.overlay["segmentation_net"] == {"_target_": "N"}
    assert plan.overlay["roi_size"] == plan.overlay["image_size"] == [96, 96, 96]
    assert plan.overlay["spacing"] == [1.0, 1.0, 1.0] and plan.overlay["orientation"] == "RAS"
    assert plan.candidates == ("scratch", "theirs.safetensors")
    said = {one.what: (one.value, one.reason) for one in plan.decisions}
    assert said["network"] == ("networks/n.json", "theirs.safetensors fills its encoder (--network)")
    assert said["start"][0] == "scratch or theirs.safetensors"
    counts = {"training": 6, "validation": 2, "test": 2, "unlabelled": 0}
    timed = add_time(plan, Speed(1.0, 1.0, 1.0, {"scratch": 0.2, "theirs.safetensors": 0.4}), 1.0, counts)
    assert timed.start == "theirs.safetensors" and timed.overlay["learning_rate"] == 0.001
    for scratch, theirs, start in ((0.4, 0.2, "scratch"), (0.02, 0.01, "theirs.safetensors")):
        tried = add_time(plan, Speed(1.0, 1.0, 1.0, {"scratch": scratch, "theirs.safetensors": theirs}), 1.0, counts)
        assert tried.start == start  # where neither has learnt anything, the user's choice
    # a crop of 40 x 52 x 40 voxels by the usual rule
    network.pop("roi_size")
    for stride, crop in (((16, 16, 16), [48, 64, 48]), ((32, 16, 8), [64, 64, 40]), ((64, 64, 64), [128] * 3)):
        prior = Prior("theirs.safetensors", ("networks/n.json", dict(network)), stride=stride)
        whole = plan_study(study(), CPU, prior=prior)
        assert whole.overlay["roi_size"] == crop
        size = " x ".join(map(str, stride))
        assert (
            f"in multiples of the {size} that networks/n.json asks for"
            in {one.what: one.reason for one in whole.decisions}["crop"]
        )
    assert "as you chose; the trial was too short" in {one.what: one.reason for one in tried.decisions}["start"]
