from __future__ import annotations

import pytest
import torch

from common.transforms import SelectChanneld


def test_the_items_channel():
    image = torch.arange(24.0).view(3, 2, 2, 2)
    transform = SelectChanneld("image")
    assert torch.equal(transform({"image": image, "channel": 2})["image"], image[2:])
    assert torch.equal(transform({"image": image})["image"], image[:1])
    with pytest.raises(ValueError, match="has 3 channels and no channel 3"):
        transform({"image": image, "channel": 3})
