"""Label maps on the scan's grid, slab by slab: voxel for voxel what MONAI's three transforms make."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import (
    Activationsd,
    AsDiscreted,
    Compose,
    CropForegroundd,
    Invertd,
    Orientationd,
    Resized,
    Rotated,
    SpatialPadd,
)

from common.transforms import AveragePoold, BackgroundPadd, PadOrCropd, ScanLabelsd, Spacingd, scan_grid

SHAPE = (23, 18, 15)
SHEARED = np.array([[0.0, 1.2, 0.3, -4], [-1.5, 0.1, 0.0, 9], [0.1, 0.4, -2.0, 3], [0, 0, 0, 1]])
AFFINES = {"straight": np.diag([-1.0, 1.0, 2.0, 1]), "sheared": SHEARED}
TURN = Orientationd("image", axcodes="RAS", labels=None)


def chain(*steps):
    return Compose([TURN, *steps])


CHAINS = {
    "nothing": Compose([SpatialPadd("image", (4, 4, 4))]),
    "orientation": chain(),
    "finer": chain(Spacingd("image", [0.7, 0.9, 1.1]), SpatialPadd("image", (40, 16, 40))),
    "coarser": chain(Spacingd("image", [2.0, 3.1, 2.2]), BackgroundPadd("image", (12, 24, 9))),
    "crop": chain(
        Spacingd("image", [1.3, 1.3, 1.3]),
        CropForegroundd("image", "image", select_fn=lambda x: x > 0.5, allow_smaller=True),
        SpatialPadd("image", (20, 20, 20)),
    ),
    "canvas": chain(Spacingd("image", [1, 1, 1]), AveragePoold("image", 2), PadOrCropd("image", (8, 18, 30))),
    "same size": chain(Resized("image", SHAPE, mode="area"), SpatialPadd("image", (26, 20, 15))),
    "smaller": chain(Resized("image", (16, 11, -1), mode="area")),
    "larger": chain(Resized("image", (64, 40, -1), mode="area"), SpatialPadd("image", (66, 40, 20))),
    "trilinear size": chain(Resized("image", (16, 11, -1), mode="trilinear")),  # not in slabs
    "twice": chain(Spacingd("image", [1.0, 1.0, 1.0]), Spacingd("image", [2.0, 2.0, 2.0])),  # not in slabs
    "rotation": chain(Rotated("image", 0.2)),  # not in slabs
}
IN_SLABS = {name for name in CHAINS if name not in ("trilinear size", "twice", "rotation")}


def scan(affine):
    image = torch.zeros(1, *SHAPE)
    image[:, 4:-3, 2:-5, 3:-1] = torch.rand(1, *SHAPE)[:, 4:-3, 2:-5, 3:-1]
    return MetaTensor(image, affine=torch.as_tensor(affine, dtype=torch.float64), meta={"filename_or_obj": "scan.nii"})


def stock(transform):
    return Compose(
        [
            Activationsd("pred", softmax=True),
            Invertd("pred", transform, "image", nearest_interp=False),
            AsDiscreted("pred", argmax=True),
        ]
    )


@pytest.fixture(autouse=True)
def seed(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(scan_grid, "SLAB_BYTES", 8 * 5 * 18 * 15 * 3)  # about three rows at a time


@pytest.mark.parametrize("sure", [1, 200], ids=["unsure", "sure"])  # with sure scores, neighbours tie half-way
@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize("name", CHAINS)
def test_it_is_what_monai_makes(name, affine, sure, monkeypatch):
    transform = CHAINS[name]
    item = transform({"image": scan(affine)})
    item["pred"] = MetaTensor(sure * torch.randn(5, *item["image"].shape[1:]).round(decimals=1))
    expected = stock(transform)(item)["pred"]
    assert (scan_grid.ScanGrid.of(item["image"]) is not None) == (name in IN_SLABS)
    found = ScanLabelsd("pred", transform)(item)["pred"]
    assert found.dtype == torch.uint8
    assert found.shape == expected.shape == (1, *SHAPE)
    assert torch.equal(found.as_tensor(), expected.as_tensor().to(torch.uint8))
    assert len(found.unique()) > 2
    np.testing.assert_allclose(found.affine, affine, atol=1e-6)
    assert found.meta["filename_or_obj"] == "scan.nii"


@pytest.mark.parametrize("name", sorted(IN_SLABS))
def test_probabilities_are_monai_s_too(name):
    transform = CHAINS[name]
    item = transform({"image": scan(SHEARED)})
    scores = torch.randn(3, *item["image"].shape[1:])
    softmax = Activationsd("pred", softmax=True)(item | {"pred": MetaTensor(scores)})
    expected = Invertd("pred", transform, "image", nearest_interp=False)(softmax)["pred"]
    grid = scan_grid.ScanGrid.of(item["image"])
    made = torch.cat([part for _, part in grid.slabs(scores)], 1)
    torch.testing.assert_close(grid.turned(made).as_tensor(), expected.as_tensor(), atol=2e-7, rtol=0)


def test_more_classes_than_a_byte_has():
    transform = CHAINS["nothing"]
    item = transform({"image": scan(SHEARED)})
    item["pred"] = MetaTensor(torch.randn(300, *SHAPE))
    found = ScanLabelsd("pred", transform)(item)["pred"]
    assert found.dtype == torch.int16
    assert torch.equal(found.as_tensor().long(), item["pred"].as_tensor().argmax(0, keepdim=True))
