from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, LoadImaged

from common.transforms import AveragePoold

AFFINE = torch.tensor([[0.0, 2, 0, -7], [1.5, 0, 0, 4], [0, 0, -3, 9], [0, 0, 0, 1]], dtype=torch.float64)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def volume(values, name="/d/scan.nii.gz"):
    return MetaTensor(values, affine=AFFINE.clone(), meta={"filename_or_obj": name})


def blocks(values, k):
    """Blocks of k x k x k voxels and their places in the result, one by one."""
    for place in np.ndindex(*(size // k for size in values.shape[1:])):
        corner = tuple(slice(p * k, (p + 1) * k) for p in place)
        yield place, values[(slice(None), *corner)].flatten(1)


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("size", [(6, 6, 12), (7, 8, 11)])
def test_means_of_blocks_and_the_rim_dropped(size, k):
    image = torch.rand(2, *size)
    found = AveragePoold("image", k)({"image": volume(image)})["image"]
    assert found.shape == (2, *(n // k for n in size))
    for place, block in blocks(image, k):
        torch.testing.assert_close(found.as_tensor()[(slice(None), *place)], block.mean(1))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_labels_by_majority(dtype):
    label = torch.randint(0, 4, (1, 7, 6, 8)).to(dtype)
    label[0, :2, :2, :2] = torch.tensor([3, 3, 3, 1, 1, 1, 0, 2]).view(2, 2, 2)  # a tie
    data = AveragePoold(["image", "label"], 2, ["mean", "majority"])({"image": volume(label), "label": volume(label)})
    found = data["label"]
    assert found.dtype == dtype and found.shape == data["image"].shape == (1, 3, 3, 4) and found[0, 0, 0, 0] == 1
    for place, block in blocks(label, 2):
        assert found[(0, *place)] == np.bincount(block[0].to(torch.int64).numpy()).argmax()
    assert data["image"].dtype == torch.float32 and data["image"][0, 0, 0, 0] == 14 / 8


def test_the_affine_puts_a_voxel_at_the_middle_of_its_block():
    image = volume(torch.rand(1, 6, 9, 7))
    found = AveragePoold("image", 3)({"image": image})["image"]
    for place in ((0, 0, 0), (1, 2, 1)):
        corner = [3.0 * p for p in place]
        first, last = (AFFINE @ torch.tensor([*(c + step for c in corner), 1.0]).double() for step in (0, 2))
        torch.testing.assert_close(found.affine @ torch.tensor([*place, 1.0]).double(), (first + last) / 2)
    assert torch.equal(image.affine, AFFINE) and image.applied_operations == [] and image.shape == (1, 6, 9, 7)
    assert found.meta["filename_or_obj"] == "/d/scan.nii.gz"


@pytest.mark.parametrize("size", [(6, 4, 8), (7, 5, 9)])
def test_inverted_by_monai(tmp_path, size):
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random(size), AFFINE.numpy()), tmp_path / "a.nii.gz")
    chain = Compose([LoadImaged("image", ensure_channel_first=True), AveragePoold("image", 2)])
    data = chain({"image": str(tmp_path / "a.nii.gz")})
    data["pred"] = MetaTensor(torch.arange(2.0 * data["image"].numel()).view(2, *data["image"].shape[1:]))
    found = Invertd("pred", chain, orig_keys="image", nearest_interp=False)(data)["pred"]
    assert found.shape == (2, *size)
    torch.testing.assert_close(found.affine, AFFINE)
    for place in np.ndindex(*size):
        block = tuple(min(p // 2, n // 2 - 1) for p, n in zip(place, size, strict=True))
        assert torch.equal(found[(slice(None), *place)], data["pred"][(slice(None), *block)])


def test_pooling_the_inverse_gives_the_pooled():
    pool = AveragePoold(["image", "label"], 2, ["mean", "majority"])
    data = {"image": volume(torch.rand(1, 7, 8, 9)), "label": volume(torch.randint(0, 5, (1, 7, 8, 9)))}
    pooled = pool(data)
    back = pool.inverse(pooled)
    again = pool(back)
    for key in data:
        assert back[key].shape == data[key].shape and back[key].applied_operations == []
        torch.testing.assert_close(back[key].affine, AFFINE)
        torch.testing.assert_close(again[key].as_tensor(), pooled[key].as_tensor())


def test_the_published_size():
    image = torch.zeros(1, 193, 229, 193, dtype=torch.float16)
    assert AveragePoold("image")({"image": volume(image)})["image"].shape == (1, 96, 114, 96)


def test_one_changes_nothing_and_is_inverted():
    pool, image = AveragePoold("image", 1), volume(torch.rand(1, 3, 4, 5))
    assert pool({"image": image})["image"] is image and pool.inverse({"image": image})["image"] is image


def test_keys_may_be_missing_where_that_is_allowed():
    data = {"image": volume(torch.rand(1, 4, 4, 4))}
    assert set(AveragePoold(["image", "label"], allow_missing_keys=True)(data)) == {"image"}
    with pytest.raises(KeyError, match="label"):
        AveragePoold(["image", "label"])(data)


def test_an_axis_without_a_block_names_the_file():
    with pytest.raises(ValueError, match=r"/d/scan.nii.gz has the shape 8x3x8, which holds no block of 4 .*`pooling`"):
        AveragePoold("image", 4)({"image": volume(torch.rand(1, 8, 3, 8))})


@pytest.mark.parametrize("options", [{"kernel_size": 0}, {"mode": "max"}, {"mode": ["mean", "nearest"]}])
def test_settings_out_of_range(options):
    with pytest.raises(ValueError, match="kernel_size of 1 or more and the modes mean, majority, got"):
        AveragePoold(["image", "label"], **options)
