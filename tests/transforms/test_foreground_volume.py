from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from common.transforms import ForegroundVolumed


def test_millilitres():
    label = torch.zeros(1, 4, 4, 4)
    label[0, 0, 0, :3] = torch.tensor([1.0, 2.0, 3.0])
    affine = torch.tensor([[0.0, -5, 0, 1], [2, 0, 0, 1], [0, 0, 10, 1], [0, 0, 0, 1]])
    made = ForegroundVolumed("label")({"label": MetaTensor(label, affine=affine)})
    assert made["label"] == pytest.approx(3 * 100 / 1000)
