from __future__ import annotations

import torch

from common.transforms import LargestComponentd


def test_the_largest_part_stays_with_its_classes():
    label = torch.zeros(1, 6, 6, 6)
    label[0, 0, 0, :3] = torch.tensor([1.0, 2.0, 1.0])
    label[0, 1, 1, 0] = 3  # touches by an edge only
    label[0, 4:, 4:, 5] = 1
    made = LargestComponentd("pred")({"pred": label})["pred"]
    expected = torch.zeros_like(label)
    expected[0, 4:, 4:, 5] = 1
    assert torch.equal(made, expected) and made.dtype == label.dtype


def test_nothing_to_do():
    empty = torch.zeros(1, 3, 3, 3)
    assert torch.equal(LargestComponentd("pred")({"pred": empty})["pred"], empty)
    two = torch.tensor([1.0, 0, 1]).view(1, 3, 1, 1)
    assert torch.equal(LargestComponentd("pred", enabled=False)({"pred": two})["pred"], two)
    assert LargestComponentd("pred")({"pred": two})["pred"].sum() == 1
