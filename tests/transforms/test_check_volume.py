from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from common.transforms import CheckVolumed

SHAPE = (1, 4, 5, 6)


def volume(values=None, dtype=torch.float32, shape=SHAPE, name="/data/scan.nii.gz"):
    torch.manual_seed(0)
    data = torch.zeros(shape, dtype=dtype)
    if values is None:
        data = torch.rand(shape).to(dtype)
    else:
        data.view(-1)[: len(values)] = torch.tensor(values, dtype=dtype)
    return MetaTensor(data, meta={"filename_or_obj": name})


def good():
    return {"image": volume(), "label": volume([0, 1, 2, 3], name="/data/label.nii.gz")}


@pytest.mark.parametrize("make", [lambda t: t, copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))])
@pytest.mark.parametrize("keys", ["image", ["image", "label"]])
def test_good_volumes_pass_unchanged(make, keys):
    data = good()
    result = make(CheckVolumed(keys, "label", 4))(data)
    assert result["image"] is data["image"] and result["label"] is data["label"]


@pytest.mark.parametrize(
    ("key", "bad", "message"),
    [
        ("image", volume([float("nan"), float("inf"), 1]), r"^/data/scan.nii.gz has 2 voxels that are not finite"),
        ("image", volume([]), r"^/data/scan.nii.gz is constant \(every voxel is 0\)"),
        ("image", volume([], torch.uint8), r"^/data/scan.nii.gz is constant"),
        ("image", volume(shape=(1, 0, 5, 6)), r"^/data/scan.nii.gz has no voxels \(shape 1x0x5x6\)"),
        ("label", volume([float("nan")]), r"^/data/scan.nii.gz has 1 voxels that are not finite"),
        ("label", volume([1, 0.5, 2.25]), r"^/data/scan.nii.gz has labels that are not whole numbers \(0.5, 2.25\)"),
        ("label", volume([4, 3, 7, 4], torch.uint8), r"^/data/scan.nii.gz has labels outside 0 to 3 \(4, 7\)"),
        ("label", volume([-1, 3]), r"^/data/scan.nii.gz has labels outside 0 to 3 \(-1\)"),
        ("label", volume([1], shape=(1, 4, 5, 7)), r"scan.nii.gz has the shape 4x5x7, but its image .* has 4x5x6"),
    ],
)
def test_one_sentence_names_file_and_fault(key, bad, message):
    with pytest.raises(ValueError, match=message) as error:
        CheckVolumed("image", "label", 4)(good() | {key: bad})
    assert "\n" not in str(error.value)


def test_a_mask_of_several_channels_is_refused():
    data = {"image": volume(), "label": volume([0, 1], shape=(4, 4, 5, 6), name="/data/label.nii.gz")}
    with pytest.raises(ValueError, match=r"^/data/label.nii.gz has 4 channels, but a mask has one"):
        CheckVolumed("image", "label", 4)(data)


def test_labels_are_unbounded_without_num_classes_but_not_negative():
    data = good() | {"label": volume([1000])}
    CheckVolumed("image", "label")(data)
    with pytest.raises(ValueError, match="outside 0 or more"):
        CheckVolumed("image", "label")(good() | {"label": volume([-2])})


def test_an_empty_label_is_allowed():
    CheckVolumed("image", "label", 2)(good() | {"label": volume([])})


def test_several_channels_share_one_label():
    CheckVolumed("image", "label", 4)(good() | {"image": volume(shape=(4, 4, 5, 6))})


@pytest.mark.parametrize(("found", "taken", "asked"), [(1, 4, "4 channels"), (2, 1, "1 channel")])
def test_another_number_of_channels_than_the_network_takes(found, taken, asked):
    data = {"image": volume(shape=(found, 4, 5, 6)), "label": good()["label"]}
    CheckVolumed("image", "label", 4)(data)
    CheckVolumed("image", "label", 4, channels=found)(data)
    expected = (
        rf"^/data/scan.nii.gz has {found} channels, but the network takes {taken}; "
        rf"give images of {asked}, or set `in_channels` to {found}"
    )
    with pytest.raises(ValueError, match=expected):
        CheckVolumed("image", "label", 4, channels=taken)(data)


def test_without_metadata_the_key_is_named():
    with pytest.raises(ValueError, match="The volume under the key 'image' is constant"):
        CheckVolumed("image")({"image": torch.zeros(SHAPE)})


def test_missing_keys():
    with pytest.raises(KeyError):
        CheckVolumed("image", "label")({"image": volume()})
    CheckVolumed("image", "label", allow_missing_keys=True)({"image": volume()})


def test_labels_that_are_not_known_are_refused():
    label = volume([0, 1, 5])
    assert CheckVolumed("label", "label", known=[0, 1, 5])({"label": label})["label"] is label
    with pytest.raises(ValueError, match=r"has labels that no class names \(5\): .*map_label_scheme"):
        CheckVolumed("label", "label", known=[0, 1])({"label": label})


def placed(shape, affine, name, label=False):
    values = torch.zeros(shape) if label else torch.rand(shape)
    return MetaTensor(values, affine=torch.as_tensor(affine), meta={"filename_or_obj": name})


def test_a_mask_elsewhere_than_its_image_is_refused():
    """Whatever the format: the headers of other than NIfTI files are first read here."""
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    image = placed(SHAPE, affine, "/data/scan.nrrd")
    there = affine.copy()
    there[2, 3] = 9.0
    with pytest.raises(
        ValueError, match=r"^/data/mask.nrrd lies up to 9 mm away from /data/scan.nrrd .* correct the header"
    ):
        CheckVolumed("image", "label", 4)({"image": image, "label": placed(SHAPE, there, "/data/mask.nrrd", True)})
    there[2, 3] = 0.1  # rounding
    CheckVolumed("image", "label", 4)({"image": image, "label": placed(SHAPE, there, "/data/mask.nrrd", True)})
    # The same grid, stored from left to right in one file and from right to left in the other.
    mirrored = affine @ np.array([[-1.0, 0, 0, 3], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    CheckVolumed("image", "label", 4)({"image": image, "label": placed(SHAPE, mirrored, "/data/mask.nrrd", True)})
    mirrored[0, 3] -= 2
    with pytest.raises(ValueError, match="lies up to 2 mm away"):
        CheckVolumed("image", "label", 4)({"image": image, "label": placed(SHAPE, mirrored, "/data/mask.nrrd", True)})
    plain = torch.zeros(SHAPE)
    CheckVolumed("image", "label", 4)({"image": image, "label": plain})  # an array has no place
