from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from common.transforms import LabelRegionsd

BRATS = [[3], [2, 3], [1, 2, 3]]  # enhancing tumour, tumour core, whole tumour


def draw(dtype=torch.float32, shape=(1, 4, 5, 6), classes=4):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(classes, shape, generator=generator).to(dtype)


def slow(label, regions):
    values = label[0].flatten().tolist()
    rows = [[float(int(v) in region) for v in values] for region in regions]
    return torch.tensor(rows).view(len(regions), *label.shape[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.int64])
@pytest.mark.parametrize("shape", [(1, 4, 5, 6), (1, 7, 8)])
@pytest.mark.parametrize("regions", [BRATS, [[1]], [[0, 2], [3, 3]]])
def test_against_a_loop_over_voxels(dtype, shape, regions):
    label = draw(dtype, shape)
    before = label.clone()
    result = LabelRegionsd("label", regions, 4)({"label": label})["label"]
    assert result.dtype == dtype and result.shape == (len(regions), *shape[1:])
    assert torch.equal(result.float(), slow(label, regions)) and torch.equal(label, before)


def test_the_regions_of_brats_are_nested():
    label = torch.tensor([0.0, 1, 2, 3]).view(1, 4, 1, 1)
    result = LabelRegionsd("label", BRATS, 4)({"label": label})["label"][..., 0, 0]
    assert result.tolist() == [[0, 0, 0, 1], [0, 0, 1, 1], [0, 1, 1, 1]]


def test_single_classes_are_one_hot():
    label = draw()
    result = LabelRegionsd("label", [[0], [1], [2], [3]], 4)({"label": label})["label"]
    assert torch.equal(result.argmax(0, keepdim=True).float(), label) and torch.equal(
        result.sum(0), torch.ones(4, 5, 6)
    )


def test_metadata_stays():
    affine = torch.diag(torch.tensor([2.0, 2, 2, 1], dtype=torch.float64))
    label = MetaTensor(draw(), affine=affine, meta={"filename_or_obj": "a.nii.gz"})
    result = LabelRegionsd(["label", "seg"], BRATS, 4)({"label": label, "seg": draw(), "age": 3})
    assert isinstance(result["label"], MetaTensor) and torch.equal(result["label"].affine, affine)
    assert result["label"].meta["filename_or_obj"] == "a.nii.gz" and result["age"] == 3
    assert torch.equal(result["label"].as_tensor(), slow(draw(), BRATS))
    assert type(result["seg"]) is torch.Tensor and torch.equal(result["seg"], slow(draw(), BRATS))


def test_numpy_stays_numpy():
    result = LabelRegionsd("label", BRATS, 4)({"label": np.array([[0, 1, 3]], np.int16)})["label"]
    assert isinstance(result, np.ndarray) and result.tolist() == [[0, 0, 1], [0, 0, 1], [0, 1, 1]]
    assert result.dtype == np.int16


def test_missing_keys():
    with pytest.raises(KeyError):
        LabelRegionsd("label", BRATS, 4)({"image": draw()})
    assert list(LabelRegionsd("label", BRATS, 4, allow_missing_keys=True)({"image": 1})) == ["image"]


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ([], r"`regions` is \[\]; it must name at least one region"),
        ([[1], []], r"`regions` is \[\[1\], \[\]\]; .*each with at least one class"),
        ([[1], [4, -1]], r"names the classes -1, 4, but with `num_classes` 4 the classes are 0 to 3"),
        ([[1.5]], r"names the classes 1.5,"),
    ],
)
def test_wrong_regions(regions, message):
    with pytest.raises(ValueError, match=message):
        LabelRegionsd("label", regions, 4)


@pytest.mark.parametrize(
    ("shape", "named"), [((2, 4, 5, 6), "2x4x5x6"), ((4, 5, 6), "4x5x6"), ((1,), "1"), ((), "of a number")]
)
def test_a_wrong_shape_names_the_file(shape, named):
    label = MetaTensor(torch.zeros(shape), meta={"filename_or_obj": "/data/label.nii.gz"})
    with pytest.raises(ValueError, match=f"^/data/label.nii.gz has the shape {named}; a label image must be channel"):
        LabelRegionsd("label", BRATS, 4)({"label": label})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (4.0, r"has labels outside 0 to 3 \(4\)"),
        (-1.0, r"has labels outside 0 to 3 \(-1\)"),
        (1.5, r"has labels that are not whole numbers \(1.5\)"),
        (float("nan"), "has 1 voxels that are not finite"),
    ],
)
def test_values_that_are_no_classes(value, message):
    label = draw()
    label[0, 0, 0, 0] = value
    with pytest.raises(ValueError, match=f"key 'label' {message}.*; correct the label"):
        LabelRegionsd("label", BRATS, 4)({"label": label})


def test_without_regions_it_is_one_hot():
    label = torch.tensor([[[0, 2], [1, 2]]])
    made = LabelRegionsd("label", None, 3)({"label": label})["label"]
    assert torch.equal(made, torch.nn.functional.one_hot(label[0], 3).movedim(-1, 0))
