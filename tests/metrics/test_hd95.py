from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.metrics import HausdorffDistanceMetric
from scipy import ndimage

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


def directed(prediction, truth, spacing):
    """Distances between the surfaces in either direction, by scipy's distance transform."""
    edges = [mask & ~ndimage.binary_erosion(mask) for mask in (prediction, truth)]
    fields = [ndimage.distance_transform_edt(~edge, sampling=spacing) for edge in edges]
    return fields[1][edges[0]], fields[0][edges[1]]


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), SPACING, (0.7, 0.7, 5.0)])
def test_both_definitions_by_scipys_distance_transform(spacing):
    prediction, truth = blobs(0), blobs(1)
    # A few voxels far off are more than 5 % of one surface and less than 5 % of both: the definitions differ.
    truth[:, 2], prediction[:, 2] = 0, 0
    truth[:, 2, :2, 2:8, 1:11] = prediction[:, 2, :2, 2:8, 1:11] = prediction[:, 2, 6:, 8:, 10:] = 1
    larger, pooled = (HD95(spacing, definition=name)(prediction, truth) for name in ("larger", "pooled"))
    for sample, label in np.ndindex(2, 2):
        there, back = directed(*(x[sample, label + 1].numpy() > 0 for x in (prediction, truth)), spacing)
        expected = max(np.percentile(there, 95), np.percentile(back, 95)), np.percentile(np.hstack((there, back)), 95)
        assert larger[sample, label].item() == pytest.approx(expected[0], rel=1e-5)
        assert pooled[sample, label].item() == pytest.approx(expected[1], rel=1e-5)
    assert (pooled[:, 1] < larger[:, 1] - 0.5).all()


def test_the_definitions_share_the_rule_for_empty_masks():
    prediction, truth = blobs(0, 5), blobs(1, 5)
    prediction[:, 1], truth[:, 2] = 0, 0
    prediction[:, 3] = truth[:, 3] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        larger, pooled = (HD95(SPACING, definition=name)(prediction, truth) for name in ("larger", "pooled"))
    torch.testing.assert_close(pooled[:, :3], larger[:, :3], equal_nan=True)
    assert pooled[:, 3].isfinite().all()


def test_another_definition_is_refused():
    with pytest.raises(ValueError, match="'larger' and 'pooled', not 'mean'"):
        HD95(SPACING, definition="mean")


def test_perfect_is_0_mm_where_neither_mask_has_a_voxel():
    prediction, truth = blobs(0, 5), blobs(1, 5)
    prediction[:, 1], truth[:, 2] = 0, 0
    prediction[0, 3] = truth[0, 3] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        left_out, perfect = (HD95(SPACING, empty=empty)(prediction, truth) for empty in ("leave_out", "perfect"))
    assert left_out[0, 2].isnan() and perfect[0, 2] == 0
    torch.testing.assert_close(perfect, left_out.nan_to_num(0))


@pytest.mark.parametrize("definition", ["larger", "pooled"])
def test_the_spacing_of_each_volume(definition):
    """As an evaluation has it on the scans' own grids: truths of different spacing and orientation, in a list."""
    prediction, truth = blobs(0), blobs(1)
    affines = [torch.diag(torch.tensor([-1.0, 1.5, 2.5, 1.0])), torch.eye(4)]
    affines[1][:3, :3] = torch.tensor([[0.0, 0.0, 3.0], [-0.5, 0.0, 0.0], [0.0, 0.7, 0.0]])
    metric = HD95(definition=definition)
    found = metric(list(prediction), [MetaTensor(y, affine=a) for y, a in zip(truth, affines, strict=True)])
    for number, spacing in enumerate([SPACING, (0.5, 0.7, 3.0)]):
        one = slice(number, number + 1)
        torch.testing.assert_close(found[one], HD95(spacing, definition=definition)(prediction[one], truth[one]))


def test_a_truth_without_a_spacing_is_refused():
    with pytest.raises(ValueError, match="give HD95 the `spacing` in mm"):
        HD95()(blobs(0), blobs(1))
