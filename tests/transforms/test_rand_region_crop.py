from __future__ import annotations

import pytest
import torch

from common.transforms import RandRegionCropd


@pytest.fixture
def item():
    label = torch.zeros(1, 20, 24, 28)
    label[0, 8:12, 1:6, 10:25] = 2
    return {"image": torch.arange(label.numel()).view(label.shape).float(), "label": label}


def test_without_expansion_it_is_the_box(item):
    made = RandRegionCropd(["image", "label"], expansion=(0, 0))(item)
    assert torch.equal(made["image"], item["image"][:, 8:12, 1:6, 10:25]) and (made["label"] == 2).all()


def test_each_side_has_its_own_draw(item):
    transform = RandRegionCropd(["image", "label"], expansion=(1, 4))
    transform.set_random_state(0)
    starts, sizes = set(), set()
    for _ in range(40):
        made = transform(item)
        assert made["image"].shape == made["label"].shape
        assert (made["label"] == 2).sum() == (item["label"] == 2).sum()  # the region is never cut
        inside = (made["label"][0] == 2).nonzero()
        starts.add(int(inside[:, 0].min()))
        sizes.add(made["label"].shape[1])
        assert inside[:, 1].min() == 1  # the image ends there
    assert starts == {1, 2, 3, 4} and min(sizes) == 6 and max(sizes) > 9


def test_no_region_is_no_crop(item):
    item["label"].zero_()
    made = RandRegionCropd(["image", "label"])(item)
    assert torch.equal(made["image"], item["image"])


def test_refusals(item):
    with pytest.raises(ValueError, match="least and a largest"):
        RandRegionCropd("image", expansion=(4, 1))
    with pytest.raises(ValueError, match="no 'label' to crop to"):
        RandRegionCropd("image")({"image": item["image"]})
    with pytest.raises(ValueError, match="not on the grid of its label"):
        RandRegionCropd(["image", "label"])(item | {"image": item["image"][:, 1:]})
