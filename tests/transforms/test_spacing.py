from __future__ import annotations

import copy
import pickle

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Spacingd as MonaiSpacingd

from common.transforms import Spacingd, spacing

PIXDIM, MODE = (2.0, 1.0, 1.5), ("bilinear", "nearest")


def volumes():
    torch.manual_seed(0)
    meta = {"filename_or_obj": "/data/scan.nii.gz"}
    affine = torch.diag(torch.tensor([1.0, 1.2, 1.0, 1], dtype=torch.float64))
    image = MetaTensor(torch.rand(1, 10, 11, 12), affine=affine, meta=dict(meta))
    return {"image": image, "label": MetaTensor((image.as_tensor() > 0.5).float(), affine=affine, meta=dict(meta))}


EXTRA = {"image_path": "/data/scan.nii.gz", "label_number": 3, "image_view": torch.ones(2), "image_none": None}


@pytest.mark.parametrize("make", [lambda t: t, copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))])
def test_other_entries_named_after_the_key_stay(make):
    expected = MonaiSpacingd(["image", "label"], pixdim=PIXDIM, mode=MODE)(volumes())
    transform = make(Spacingd(["image", "label"], pixdim=PIXDIM, mode=MODE))
    result = transform(volumes() | EXTRA)
    for key in ("image", "label"):
        assert torch.equal(result[key], expected[key]) and torch.equal(result[key].affine, expected[key].affine)
    assert result["image"].shape != volumes()["image"].shape
    for key, value in EXTRA.items():
        assert result[key] is value


def test_metadata_dictionaries_are_still_updated():
    result = Spacingd("image", pixdim=PIXDIM)(volumes() | {"image_meta_dict": {}})
    assert torch.equal(result["image_meta_dict"]["affine"], result["image"].affine)


def test_inverse_restores_grid_and_keeps_the_entries():
    transform = Spacingd(["image", "label"], pixdim=PIXDIM, mode=MODE)
    restored = transform.inverse(transform(volumes() | EXTRA))
    for key in ("image", "label"):
        assert restored[key].shape == volumes()[key].shape
        assert torch.allclose(restored[key].affine, volumes()[key].affine)
    assert restored["image_path"] == EXTRA["image_path"]


def test_lazy():
    expected = Spacingd("image", pixdim=PIXDIM)(volumes())["image"]
    pending = Spacingd("image", pixdim=PIXDIM, lazy=True)(volumes() | EXTRA)["image"]
    assert pending.pending_operations and pending.peek_pending_shape() == expected.shape[1:]


def test_the_input_is_not_changed():
    data = volumes() | EXTRA
    before = set(data)
    Spacingd("image", pixdim=PIXDIM)(data)
    assert set(data) == before


def test_a_result_that_memory_does_not_hold_names_the_file():
    """Voxels of 450 mm that should be 0.45 mm: PyTorch's own error has a number of bytes alone."""
    item = volumes()
    item["image"].affine = torch.diag(torch.tensor([450.0, 450.0, 450.0, 1], dtype=torch.float64))
    item["image"] = MetaTensor(torch.rand(1, 60, 60, 60), affine=item["image"].affine, meta=item["image"].meta)
    with pytest.raises(
        ValueError, match=r"^/data/scan.nii.gz \(60x60x60 voxels of 450x450x450 mm\) cannot be resampled"
    ):
        Spacingd("image", pixdim=(1.0, 1.0, 1.0))(item)


@pytest.mark.parametrize("slanted", [False, True])
@pytest.mark.parametrize("pixdim", [(1.0, 1.0, 1.0), (0.7, 3.0, 2.2), (2.0, 1.5, -1)], ids=str)
def test_slabs_are_monai_s_resampling(pixdim, slanted, monkeypatch):
    """Values, shape, affine, noted operations and inverse."""
    torch.manual_seed(0)
    monkeypatch.setattr(spacing, "SLAB_BYTES", 1)  # row by row
    affine = torch.tensor([[0.0, 1.2, 0, -4], [-2, 0, 0, 9], [0, 0, 1.5, 3], [0, 0, 0, 1]], dtype=torch.float64)
    affine[0, 2] = 0.3 * slanted
    item = {"image": MetaTensor(torch.rand(2, 9, 14, 11), affine=affine)}
    ours, stock = (kind("image", pixdim, mode="bilinear") for kind in (Spacingd, MonaiSpacingd))
    found, expected = ours(item)["image"], stock(item)["image"]
    assert found.shape == expected.shape
    torch.testing.assert_close(found.as_tensor(), expected.as_tensor(), rtol=0, atol=1e-6 if slanted else 0)
    torch.testing.assert_close(found.affine, expected.affine, rtol=0, atol=0)
    noted, wanted = (dict(image.applied_operations[-1]) for image in (found, expected))
    noted.pop("id"), wanted.pop("id")
    assert str(noted) == str(wanted)
    torch.testing.assert_close(
        ours.inverse({"image": found})["image"].as_tensor(),
        stock.inverse({"image": expected})["image"].as_tensor(),
        rtol=0,
        atol=1e-6,
    )
