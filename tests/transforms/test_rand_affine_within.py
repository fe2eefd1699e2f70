from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import RandAffined

from common.transforms import RandAffineWithind

TURN = {"rotate_range": [[0.7, 0.7]] * 3, "mode": ["bilinear", "nearest"]}


@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
def test_what_comes_from_outside_does_not_count(padding_mode):
    """It was background, or what the last voxel of the crop is, in a corner that shows nobody's tissue."""
    label = torch.randint(1, 3, (1, 12, 12, 12)).float()
    item = {"image": MetaTensor(torch.rand(1, 12, 12, 12)), "label": MetaTensor(label)}
    made, monais = (
        kind(["image", "label"], prob=1, padding_mode=[padding_mode, "zeros"], **TURN).set_random_state(0)(item)
        for kind in (RandAffineWithind, RandAffined)
    )
    assert torch.equal(made["image"], monais["image"])
    outside = monais["label"] == 0  # no voxel of the crop is
    assert outside.any() and (made["label"][outside] == -1).all()
    assert torch.equal(made["label"][~outside], monais["label"][~outside])
    assert torch.equal(made["label"].affine, monais["label"].affine) and torch.equal(item["label"], label)


def test_a_label_of_255_counts():
    label = MetaTensor(torch.full((1, 12, 12, 12), 255, dtype=torch.uint8))
    item = {"image": torch.ones(1, 12, 12, 12), "label": label}
    made = RandAffineWithind(["image", "label"], prob=1, **TURN).set_random_state(0)(item)
    assert set(made["label"].unique().tolist()) == {-1, 255}


def test_one_padding_mode_is_of_the_images_alone():
    item = {"image": torch.ones(1, 8, 8, 8), "label": torch.zeros(1, 8, 8, 8)}
    made = RandAffineWithind(["image", "label"], prob=1, padding_mode="border", **TURN).set_random_state(0)(item)
    assert torch.allclose(made["image"], item["image"]) and set(made["label"].unique().tolist()) == {-1, 0}


def test_without_a_draw_nothing_changes():
    item = {"image": torch.rand(1, 4, 4, 4), "label": torch.tensor([0.0, -1, 2, 1]).expand(1, 4, 4, 4)}
    made = RandAffineWithind(["image", "label"], prob=0, **TURN)(item)
    assert torch.equal(made["image"], item["image"]) and torch.equal(made["label"], item["label"])
