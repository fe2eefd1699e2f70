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
