from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from monai.metrics import HausdorffDistanceMetric

from common.metrics import HD95

SIZE, SPACING = (8, 10, 12), (1.0, 1.5, 2.5)


def one_hot(labels, classes=3):
    return torch.nn.functional.one_hot(labels, classes).movedim(-1, 1).float()


def blobs(seed, classes=3):
    """Label maps (2, *SIZE) of overlapping boxes, every class in each."""
    generator = np.random.default_rng(seed)
    labels = torch.zeros(2, *SIZE, dtype=torch.long)
    for sample in labels:
        for label in range(1, classes):
            start = [int(generator.integers(0, size - 4)) for size in SIZE]
            sample[tuple(slice(s, s + int(generator.integers(2, 5))) for s in start)] = label
        sample[0, 0, :classes] = torch.arange(classes)
    return one_hot(labels, classes)


def slow(prediction, truth):
    """95th percentile of the distances between surfaces in either direction, the larger; voxel by voxel."""

    def surface(mask):
        points = []
        for place in np.argwhere(mask):
            around = [place + step for axis in np.eye(3, dtype=int) for step in (axis, -axis)]
            if any((n < 0).any() or (n >= mask.shape).any() or not mask[tuple(n)] for n in around):
                points.append(place * np.array(SPACING))
        return np.array(points)

    a, b = surface(prediction), surface(truth)
    distances = np.linalg.norm(a[:, None] - b[None], axis=-1)
    return max(np.percentile(distances.min(0), 95), np.percentile(distances.min(1), 95))


@pytest.mark.parametrize("include_background", [False, True])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), SPACING])
def test_monais_where_no_mask_is_empty(include_background, spacing):
    prediction, truth = blobs(0), blobs(1)
    found = HD95(spacing, include_background)(prediction, truth)
    expected = HausdorffDistanceMetric(include_background, percentile=95)(prediction, truth, spacing=spacing)
    assert found.shape == (2, 2 + include_background) and (found > 0).all()
    torch.testing.assert_close(found, expected)


def test_a_slow_reference_in_mm():
    prediction, truth = blobs(0), blobs(1)
    found = HD95(SPACING)(prediction, truth)
    for sample in range(2):
        for label in (1, 2):
            expected = slow(prediction[sample, label].numpy() > 0, truth[sample, label].numpy() > 0)
            assert found[sample, label - 1].item() == pytest.approx(expected, rel=1e-5)


def test_the_same_masks_are_0_apart():
    assert (HD95(SPACING)(blobs(0), blobs(0)) == 0).all()


def test_the_rule_for_empty_masks():
    prediction, truth = blobs(0, 5), blobs(1, 5)
    prediction[:, 1], truth[:, 2] = 0, 0  # missed; invented
    prediction[0, 3] = truth[0, 3] = 0  # in neither
    metric = HD95(SPACING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = metric(prediction, truth)
    diagonal = math.sqrt(sum((n * s) ** 2 for n, s in zip(SIZE, SPACING, strict=True)))
    assert found[:, :2].flatten().tolist() == pytest.approx([diagonal] * 4)
    assert found[0, 2].isnan() and found[1, 2].isfinite() and found[:, 3].isfinite().all()
    assert diagonal > found[:, 3].max()
    # The mean leaves out what is in neither: per sample over its classes, then over samples.
    assert metric.aggregate().item() == pytest.approx(found.nanmean(1).mean().item())
    metric.reset()


def test_with_background_the_channels_shift():
    prediction, truth = blobs(0), blobs(1)
    prediction[:, 1] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with_background, without = HD95(SPACING, True)(prediction, truth), HD95(SPACING)(prediction, truth)
    torch.testing.assert_close(with_background[:, 1:], without)
    assert (without[:, 0] > 25).all() and (without[:, 1] < 25).all()
