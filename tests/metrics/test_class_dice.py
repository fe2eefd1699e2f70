from __future__ import annotations

import pytest
import torch
from monai.metrics import DiceMetric
from torch.nn import functional as F

from common.metrics import ClassDice


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


def test_class_dice_of_all_is_monais(volumes):
    assert measured(ClassDice(), volumes) == measured(DiceMetric(include_background=False), volumes)


@pytest.mark.parametrize(
    ("classes", "columns"), [(None, [1, 2, 3]), ([0, 2, 3], [0, 2, 3])], ids=["without_background", "chosen"]
)
def test_the_rule_for_empty_masks(volumes, classes, columns):
    """Found, invented, in neither: Dice, 0 (MONAI leaves it out), left out; missed is 0 in both."""
    prediction, truth = (mask[None].clone() for mask in volumes[1])
    truth[:, 2] = 0
    found, monais = ClassDice(classes, empty="leave_out")(prediction, truth), ClassDice(classes)(prediction, truth)
    assert found[0, 0].item() == pytest.approx(dice(prediction[:, columns[0]], truth[:, columns[0]]), abs=1e-6)
    assert found[0, 1] == 0 and monais[0, 1].isnan()
    assert found[0, 2].isnan()
    missed = ClassDice(classes, empty="leave_out")(truth, prediction)
    assert missed[0, 1] == 0 and missed[0, 2].isnan()


def test_the_mean_with_the_rule(volumes):
    prediction, truth = (mask[None].clone() for mask in volumes[1])
    truth[:, 2] = 0
    metric = ClassDice(empty="leave_out")
    metric(prediction, truth)
    assert metric.aggregate().item() == pytest.approx(dice(prediction[:, 1], truth[:, 1]) / 2, abs=1e-6)


def test_another_or_a_second_rule_is_refused():
    with pytest.raises(ValueError, match="not 'zero'"):
        ClassDice(empty="zero")
    with pytest.raises(ValueError, match="two rules"):
        ClassDice(empty="leave_out", ignore_empty=False)
