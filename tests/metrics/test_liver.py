from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.metrics.utils import get_mask_edges

from common.metrics import ASSD, RVD, VOE

SPACING = (1.0, 2.0, 3.0)


def masks() -> tuple[torch.Tensor, torch.Tensor]:
    """Truth and prediction (2, 4, 8, 9, 10): one that overlaps, one missed, one in neither; and then one invented."""
    truth, prediction = torch.zeros(2, 4, 8, 9, 10), torch.zeros(2, 4, 8, 9, 10)
    truth[0, 1, 2:6, 3:7, 2:8] = 1
    prediction[0, 1, 3:8, 2:6, 2:7] = 1
    truth[0, 2, 1, 1, 1] = 1
    prediction[1, 3, 4, 4, 4] = 1
    return truth, prediction


def test_against_counts_of_voxels():
    truth, prediction = masks()
    a, b = truth[0, 1].bool().numpy(), prediction[0, 1].bool().numpy()
    voe, rvd = VOE()(prediction, truth), RVD()(prediction, truth)
    assert voe[0, 0].item() == pytest.approx(1 - (a & b).sum() / (a | b).sum())
    assert rvd[0, 0].item() == pytest.approx(abs(int(b.sum()) - int(a.sum())) / a.sum())
    for found in (voe, rvd):
        assert found[0, 1] == 1 and found[1, 2] == 1  # missed, invented
        assert found[0, 2].isnan() and found[1, 0].isnan()
    assert VOE(empty="perfect")(prediction, truth)[1, 0] == 0


def test_assd_against_every_pair_of_surface_voxels():
    truth, prediction = masks()
    affine = torch.diag(torch.tensor([*SPACING, 1.0]))
    found = ASSD()(prediction, MetaTensor(truth, affine=affine))
    surfaces = [
        np.argwhere(edge) * SPACING
        for edge in get_mask_edges(prediction[0, 1], truth[0, 1], always_return_as_numpy=True)
    ]
    distances = np.linalg.norm(surfaces[0][:, None] - surfaces[1][None], axis=2)
    assert found[0, 0].item() == pytest.approx(np.concatenate((distances.min(1), distances.min(0))).mean(), rel=1e-5)
    assert found[0, 1].item() == pytest.approx(math.dist((0, 0, 0), (8, 18, 30)), rel=0.2)  # the diagonal
    with pytest.raises(ValueError, match="ASSD has no `spacing`"):
        ASSD()(prediction, truth)


def test_mean_and_refusal():
    truth, prediction = masks()
    metric = VOE()
    metric(prediction, truth)
    values = metric.get_buffer()
    assert metric.aggregate() == values.nanmean(1).nanmean()
    with pytest.raises(ValueError, match="RVD has the rules"):
        RVD(empty="zero")
