from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from common.transforms import DomainSpacingd, Spacingd

SPACINGS = {"fine": [1.0, 1.0, 1.0], "coarse": [4.0, 2.0, 3.0]}


@pytest.fixture
def item():
    torch.manual_seed(0)
    affine = torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0]))
    label = torch.randint(3, (1, 8, 9, 10)).float() * 5
    return {
        "image": MetaTensor(torch.rand(1, 8, 9, 10), affine=affine),
        "label": MetaTensor(label, affine=affine),
        "image_path": "left alone",
    }


@pytest.mark.parametrize("domain", SPACINGS)
def test_each_domain_has_its_spacing(item, domain):
    keys, mode = ["image", "label"], ["bilinear", "nearest"]
    made = DomainSpacingd(keys, SPACINGS, mode=mode)(item | {"domain": domain})
    expected = Spacingd(keys, pixdim=SPACINGS[domain], mode=mode)(item)
    for key in keys:
        assert torch.equal(made[key], expected[key]) and torch.equal(made[key].affine, expected[key].affine)
    assert made["image"].pixdim.tolist() == SPACINGS[domain]
    assert set(made["label"].unique().tolist()) <= {0, 5, 10}
    assert made["image_path"] == "left alone"


def test_an_unknown_domain(item):
    with pytest.raises(
        ValueError, match="of the domain 'odd', which has no spacing; spacings are known for fine, coarse"
    ):
        DomainSpacingd("image", SPACINGS)(item | {"domain": "odd"})
    with pytest.raises(ValueError, match="of the domain None"):
        DomainSpacingd("image", SPACINGS)(item)
