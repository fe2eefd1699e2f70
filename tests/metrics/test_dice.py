from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.metrics import DiceMetric
from torch.nn import functional as F

from common.metrics import HD95, ClassDice, PooledDice
from common.metrics.voxel_counts import count_voxels


@pytest.fixture
def volumes():
    """Three volumes of different sizes, predictions of four classes, of which the last is nowhere."""
    generator = torch.Generator().manual_seed(0)
    pairs = [torch.randint(3, (2, side, 4, 5), generator=generator) for side in (2, 7, 30)]
    return [[F.one_hot(image, 4).movedim(-1, 0).float() for image in pair] for pair in pairs]


def dice(prediction, truth):
    return 2 * float((prediction * truth).sum()) / float(prediction.sum() + truth.sum())


def measured(metric, volumes):
    for prediction, truth in volumes:
        metric([prediction], [truth])
    return float(metric.aggregate())


def test_class_dice_is_the_mean_over_volumes(volumes):
    expected = [sum(dice(prediction[c], truth[c]) for c in (0, 2)) / 2 for prediction, truth in volumes]
    assert measured(ClassDice([0, 2]), volumes) == pytest.approx(sum(expected) / 3, abs=1e-6)


def test_class_dice_of_all_is_monais_where_no_mask_is_empty(volumes):
    filled = [[mask[:3] for mask in pair] for pair in volumes]
    assert measured(ClassDice(), filled) == pytest.approx(
        measured(DiceMetric(include_background=False), filled), abs=1e-6
    )
    background = measured(ClassDice(include_background=True), filled)
    assert background == pytest.approx(measured(DiceMetric(), filled), abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "columns"),
    [({}, [1, 2, 3]), ({"classes": [0, 2, 3]}, [0, 2, 3])],
    ids=["without_background", "chosen"],
)
def test_the_rule_for_empty_masks(volumes, arguments, columns):
    """Found, invented, in neither: Dice, 0 (MONAI leaves it out), left out or 1; missed is 0."""
    prediction, truth = (mask[None].clone() for mask in volumes[1])
    truth[:, 2] = 0
    found = ClassDice(**arguments)(prediction, truth)
    assert found[0, 0].item() == pytest.approx(dice(prediction[:, columns[0]], truth[:, columns[0]]), abs=1e-6)
    assert found[0, 1] == 0 and DiceMetric(include_background=False)(prediction, truth)[0, 1].isnan()
    assert found[0, 2].isnan()
    missed = ClassDice(**arguments)(truth, prediction)
    assert missed[0, 1] == 0 and missed[0, 2].isnan()
    perfect = ClassDice(**arguments, empty="perfect")(prediction, truth)
    assert perfect[0, :2].tolist() == found[0, :2].tolist() and perfect[0, 2] == 1


def test_the_mean_with_the_rule(volumes):
    prediction, truth = (mask[None].clone() for mask in volumes[1])
    truth[:, 2] = 0
    metric = ClassDice()
    metric(prediction, truth)
    assert metric.aggregate().item() == pytest.approx(dice(prediction[:, 1], truth[:, 1]) / 2, abs=1e-6)


@pytest.mark.parametrize("metric", [ClassDice(), HD95((1.0, 1.0, 1.0))], ids=["dice", "hd95"])
def test_no_foreground_anywhere_is_no_number(metric):
    """MONAI's mean of nothing is 0, the best distance there is."""
    empty = torch.zeros(1, 3, 4, 4, 4)
    empty[:, 0] = 1
    metric(empty, empty)
    assert metric.aggregate().isnan()


def test_large_masks_are_counted_exactly():
    ones = torch.ones(1, 1, 2**13, 2**12)
    assert ClassDice([0])(ones, ones).item() == 1


@pytest.mark.parametrize("metric", [ClassDice, HD95])
def test_another_rule_is_refused(metric):
    with pytest.raises(ValueError, match="has the rules empty='leave_out' and 'perfect', not 'zero'"):
        metric(empty="zero")


def test_pooled_is_that_of_one_volume_made_of_all(volumes):
    joint = [torch.cat([pair[side] for pair in volumes], dim=1) for side in (0, 1)]
    expected = [dice(joint[0][c], joint[1][c]) for c in range(3)]
    assert measured(PooledDice(), volumes) == pytest.approx(sum(expected[1:]) / 2, abs=1e-12)
    assert measured(PooledDice([0, 2]), volumes) == pytest.approx((expected[0] + expected[2]) / 2, abs=1e-12)
    assert math.isnan(measured(PooledDice([3]), volumes))


def test_pooled_counts_large_volumes_exactly():
    ones = torch.ones(1, 2, 2**13, 2**12)
    assert measured(PooledDice([0]), [[ones[0], ones[0]]]) == 1


def test_pooled_of_each_class(volumes):
    metric = PooledDice(per_class=True)
    measured_mean = measured(PooledDice(), volumes)
    for prediction, truth in volumes:
        metric([prediction], [truth])
    found = metric.aggregate()
    joint = [torch.cat([pair[side] for pair in volumes], dim=1) for side in (0, 1)]
    assert found.shape == (3,) and found[2].isnan()
    assert found[:2].tolist() == pytest.approx([dice(joint[0][c], joint[1][c]) for c in (1, 2)], abs=1e-12)
    assert found.nanmean().item() == pytest.approx(measured_mean, abs=1e-12)
    assert metric.by_class() == pytest.approx(dict(enumerate(found.tolist(), start=1)), nan_ok=True)
    chosen = PooledDice([2, 0])
    measured(chosen, volumes)
    assert chosen.by_class() == pytest.approx({c: dice(joint[0][c], joint[1][c]) for c in (2, 0)}, abs=1e-12)


def test_statistics_of_the_truth_by_class():
    """Table 3 of TransSeg: voxels, slices, and the Dice of the labels of neighbouring slices."""
    truth = torch.zeros(2, 3, 4, 4, 5)
    truth[0, 1, :2, :, 1] = 1  # 8 voxels
    truth[0, 1, 1:2, :, 2] = 1  # 4, all of them within the 8
    truth[1, 1, :, :, 4] = 1  # 16 at the end of the other volume, none beside it
    metric = PooledDice()
    metric(truth, truth)
    found = metric.statistics()
    assert (found[1]["voxels"], found[1]["slices"]) == (28, 3)
    pairs = [0, 2 * 4 / 12, 0, 0]  # of slices 0|1, 1|2, 2|3 of the first, and 3|4 of the second
    assert found[1]["slice_dice"] == pytest.approx(sum(pairs) / 4)
    assert (found[2]["voxels"], found[2]["slices"]) == (0, 0) and math.isnan(found[2]["slice_dice"])


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int64, torch.bfloat16, torch.float16, torch.float32, torch.float64]
)
@pytest.mark.parametrize("layout", ["channels first", "channels last"])
def test_voxels_are_counted_exactly(monkeypatch, dtype, layout):
    """Also beyond what a type can count, in pieces and with a rest."""
    monkeypatch.setattr("common.metrics.voxel_counts.EXACT", 1000)
    masks = torch.rand(2, 3, 70_001, generator=torch.Generator().manual_seed(0)) > 0.03
    expected = np.count_nonzero(masks.numpy(), axis=2)
    if layout == "channels last":
        masks = masks.movedim(1, -1).contiguous().movedim(-1, 1)
    found = count_voxels(masks.to(dtype))
    assert found.dtype == torch.float64 and np.array_equal(found.numpy(), expected)


def test_more_voxels_than_float32_counts_are_counted():
    """One more than float32's last whole number would be lost."""
    masks = torch.ones(1, 1, 1, dtype=torch.uint8).expand(1, 1, 2**24 + 1)
    assert count_voxels(masks).item() == 2**24 + 1
