from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from common.data import prepare_domain_batch


def batch(*branches):
    count = len(branches)
    return {
        "image": MetaTensor(torch.rand(count, 1, 2, 2, 2)),
        "label": MetaTensor(torch.rand(count, 1, 2, 2, 2)),
        "branch": torch.tensor(branches),
        "domain": [f"set{number}" for number in branches],
    }


def test_image_label_and_branch():
    data = batch(2, 2)
    image, label, args, kwargs = prepare_domain_batch(data, "cpu")
    assert type(image) is type(label) is torch.Tensor and args == () and kwargs == {"branch": 2}
    assert torch.equal(image, data["image"].as_tensor()) and torch.equal(label, data["label"].as_tensor())


def test_domains_do_not_mix():
    with pytest.raises(ValueError, match=r"A batch mixes the domains set0, set2, .*DomainSampler"):
        prepare_domain_batch(batch(0, 2), "cpu")


def test_what_a_batch_needs():
    data = batch(0)
    del data["branch"]
    with pytest.raises(KeyError, match="no 'branch'"):
        prepare_domain_batch(data, "cpu")
