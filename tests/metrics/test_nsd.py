from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from common.metrics import NSD
from common.score import score_masks

SPACING = (2.0, 1.0, 0.5)


def masks() -> tuple[torch.Tensor, torch.Tensor]:
    """Prediction and truth (2, 4, ...): class 1 in both, 2 in neither, 3 in one of them."""
    random = np.random.default_rng(0)
    truth, prediction = (torch.zeros(2, 4, 8, 9, 10) for _ in range(2))
    for number in range(2):
        truth[number, 1, 2:6, 2:6, 2:7] = 1
        prediction[number, 1] = truth[number, 1].roll(number + 1, dims=1)
        (truth, prediction)[number][number, 3] = torch.tensor(random.random((8, 9, 10)) > 0.9)
    for mask in (truth, prediction):
        mask[:, 0] = 1 - mask[:, 1:].amax(1)
    return prediction, truth


@pytest.mark.parametrize("tolerance", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("empty", ["leave_out", "perfect"])
def test_is_that_of_the_command(tolerance, empty):
    prediction, truth = masks()
    metric = NSD(tolerance, SPACING, empty=empty)
    found = metric(prediction, truth)
    assert found.shape == (2, 3)
    for sample, label in np.ndindex(2, 3):
        pair = truth[sample, label + 1].numpy(), prediction[sample, label + 1].numpy()
        expected = score_masks(*pair, SPACING, tolerance, empty=empty)["nsd"]
        assert float(found[sample, label]) == pytest.approx(expected, nan_ok=True)
    assert (found[:, 2] == 0).all(), "missed and invented"
    assert (found[:, 1] == 1).all() if empty == "perfect" else found[:, 1].isnan().all()
    # shifted by a voxel of 1 mm and by two
    assert (found[0, 0] == 1) == (tolerance >= 1) and (found[1, 0] == 1) == (tolerance >= 2)
    assert float(metric.aggregate()) == pytest.approx(float(found.nanmean(1).mean()))


def test_spacing_of_the_volume():
    prediction, truth = masks()
    affine = torch.diag(torch.tensor([*SPACING, 1.0]))
    found = NSD(1.0)(prediction, MetaTensor(truth, affine=affine))
    torch.testing.assert_close(found, NSD(1.0, SPACING)(prediction, truth), equal_nan=True)
    with pytest.raises(ValueError, match=r"NSD has no `spacing` and the truth carries none"):
        NSD(1.0)(prediction, truth)


@pytest.mark.parametrize("tolerance", [-1, math.inf, True, "1"])
def test_a_tolerance_that_is_none(tolerance):
    with pytest.raises(ValueError, match="The tolerance of NSD must be 0 mm or more"):
        NSD(tolerance)
