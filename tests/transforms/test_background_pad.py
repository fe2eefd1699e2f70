from __future__ import annotations

import pickle

import pytest
import torch
from monai.data import MetaTensor, list_data_collate
from monai.transforms import Compose, SpatialCropd, SpatialPadd

from common.transforms import BackgroundPadd


def volume():
    """Two channels whose least values are -3 and 2, which a crop of the middle does not have."""
    image = torch.stack((torch.full((5, 6, 7), 1.0), torch.full((5, 6, 7), 9.0)))
    image[0, 0], image[1, 0] = -3, 2
    return MetaTensor(image, affine=torch.diag(torch.tensor([1.0, 2, 3, 1])), meta={"filename_or_obj": "scan.nii.gz"})


@pytest.mark.parametrize("method", ["symmetric", "end"])
@pytest.mark.parametrize("size", [[8, 6, 10], [4, 9, -1], 8])
def test_as_monai_but_for_the_value(size, method):
    image = volume()
    made = BackgroundPadd("image", size, method=method)({"image": image})["image"]
    expected = SpatialPadd("image", size, method=method, value=-7)({"image": image})["image"]
    padding = expected == -7
    assert torch.equal(made.affine, expected.affine)
    assert torch.equal(made[~padding], expected[~padding])
    for channel, least in enumerate((-3, 2)):
        assert padding[channel].any() and (made[channel][padding[channel]] == least).all()


def test_label_maps_are_padded_with_label_0():
    """Labels that fill the map leave no background in it, so its least label is a structure."""
    labels = MetaTensor(torch.full((1, 4, 4, 4), 2, dtype=torch.uint8))
    labels[:, 2:] = 3
    pad = BackgroundPadd("image", 8, interpolation="nearest")
    made = pad({"image": labels})["image"]
    assert made.dtype == torch.uint8 and torch.equal(made, SpatialPadd("image", 8)({"image": labels})["image"])
    assert set(made.unique().tolist()) == {0, 2, 3} and (made == 0).sum() == 8**3 - 4**3
    scan = BackgroundPadd("image", 8, interpolation="bilinear")({"image": labels})["image"]
    assert set(scan.unique().tolist()) == {2, 3}


def test_inverse():
    pad = BackgroundPadd("image", 12)
    image = volume()
    assert torch.equal(pad.inverse(pad({"image": image}))["image"], image)


@pytest.mark.parametrize("again", [lambda item: item, lambda item: pickle.loads(pickle.dumps(item))])
def test_a_crop_is_padded_with_the_background_of_its_volume(again):
    crop = SpatialCropd("image", roi_start=[1, 1, 1], roi_end=[4, 5, 6])
    item = again(Compose([BackgroundPadd("image", 5), crop])({"image": volume()}))
    made = BackgroundPadd("image", [6, 4, 5])(item)["image"]
    assert (made[0, 0] == -3).all() and (made[1, -1] == 2).all() and (made[0, 1:4] == 1).all()
    assert (BackgroundPadd("image", [6, 4, 5])({"image": item["image"].as_tensor()})["image"][0] == 1).all()
    list_data_collate([{"image": made}, {"image": made}])


def test_plain_tensors_and_images_that_are_large_enough():
    image = volume().as_tensor()
    assert torch.equal(torch.as_tensor(BackgroundPadd("image", 4)({"image": image})["image"]), image)
    before = image.clone()
    made = BackgroundPadd("image", 8)({"image": image})["image"]
    assert made.shape == (2, 8, 8, 8) and float(made[0].min()) == -3 and torch.equal(image, before)
