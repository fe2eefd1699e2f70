from __future__ import annotations

import logging

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import ResizeWithPadOrCropd

from common.transforms import PadOrCropd


def brain(margin, size=(10, 12, 14)):
    """Ones but for a margin of background."""
    values = torch.zeros(1, *size)
    values[(slice(None), *(slice(margin, n - margin) for n in size))] = 1
    return MetaTensor(values, meta={"filename_or_obj": "/d/scan.nii.gz"})


def test_is_monais_and_says_nothing_where_only_background_goes(caplog):
    data = {"image": brain(2), "label": brain(3)}
    found = PadOrCropd(["image", "label"], [8, 16, 10])(data)
    expected = ResizeWithPadOrCropd(["image", "label"], [8, 16, 10])(data)
    for key in data:
        assert torch.equal(found[key], expected[key]) and torch.equal(found[key].affine, expected[key].affine)
    assert found["image"].shape == (1, 8, 16, 10) and not caplog.records


def test_the_warning_names_file_and_share(caplog):
    PadOrCropd("image", [6, 12, 14])({"image": brain(1)})
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    # Of eight slices of the brain along x six are left.
    assert record.getMessage().startswith("/d/scan.nii.gz: 25.0 % of its voxels that are not 0 lie outside")
    assert "canvas [6, 12, 14]" in record.getMessage() and "roi_size" in record.getMessage()


@pytest.mark.parametrize(("share", "warned"), [(0.2, True), (0.25, False)])
def test_a_share_may_be_lost(caplog, share, warned):
    PadOrCropd("image", [6, 12, 14], share=share)({"image": brain(1)})
    assert bool(caplog.records) == warned


def test_images_and_masks_are_counted_each(caplog):
    data = {"image": brain(1), "mask": brain(1), "other": brain(0)}
    data["image"][:, 0] = data["image"][:, -1] = 0
    data["mask"].meta["filename_or_obj"] = "/d/mask.nii.gz"
    PadOrCropd(["image", "mask"], [8, 8, 14])(data)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["/d/scan.nii.gz", "/d/mask.nii.gz"]


def test_what_is_added_has_a_value_and_is_not_counted(caplog):
    found = PadOrCropd("label", [6, 16, 14], value=-1)({"label": brain(1)})["label"]
    assert (found[:, :, :2] == -1).all() and (found[:, :, 2:-2] >= 0).all()
    (record,) = caplog.records
    assert record.getMessage().startswith("/d/scan.nii.gz: 25.0 % of its voxels")


def test_missing_keys_are_not_counted(caplog):
    assert PadOrCropd(["image", "mask"], [8, 16, 10], allow_missing_keys=True)({"image": brain(2)}).keys() == {"image"}
    assert not caplog.records


def test_an_image_of_background_alone(caplog):
    assert PadOrCropd("image", [4, 4, 4])({"image": brain(5)})["image"].sum() == 0
    assert not caplog.records


def test_can_be_inverted():
    canvas, data = PadOrCropd("image", [6, 14, 14]), {"image": brain(2)}
    back = canvas.inverse(canvas(data))["image"]
    assert torch.equal(back, data["image"]) and torch.equal(back.affine, data["image"].affine)
