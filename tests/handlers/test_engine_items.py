from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from common.handlers.engine_items import image_affine, output_items

AFFINES = torch.stack([torch.diag(torch.tensor([size, 1.0, 1.0, 1.0])) for size in (2.0, 3.0)])
IMAGES = torch.rand(2, 1, 4, 4, 4)


def decollated() -> list:
    return [{"image": MetaTensor(image, affine=affine)} for image, affine in zip(IMAGES, AFFINES, strict=True)]


def collated() -> dict:
    images = MetaTensor(IMAGES, affine=AFFINES)
    images.is_batch = True
    return {"image": images}


@pytest.mark.parametrize("batch", [decollated, collated])
def test_each_image_has_its_affine(batch):
    for number, affine in enumerate(AFFINES):
        assert torch.equal(image_affine(batch(), number).float(), affine)


def test_a_plain_tensor_has_no_affine():
    assert image_affine({"image": IMAGES}, 0) is None


def test_items_of_a_batch_and_of_a_list_are_the_same():
    output = {"image": IMAGES, "label": IMAGES > 0.5, "pred": -IMAGES, "loss": torch.tensor(0.0)}
    items = output_items(output)
    assert len(items) == 2 and all(set(item) == {"image", "label", "pred"} for item in items)
    assert torch.equal(items[1]["pred"], -IMAGES[1]) and torch.equal(items[0]["label"], IMAGES[0] > 0.5)
    assert output_items(items) is items


def test_a_prediction_that_is_no_tensor_makes_no_items():
    assert output_items({"image": IMAGES, "label": IMAGES, "pred": {"patches": IMAGES}}) == []
