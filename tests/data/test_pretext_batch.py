from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from common.data import prepare_pretext_batch


@pytest.mark.parametrize("kind", [torch.Tensor, MetaTensor])
def test_the_image_is_its_own_target(kind):
    image = kind(torch.rand(2, 1, 4, 4, 4))
    network_input, target = prepare_pretext_batch({"image": image, "label": torch.zeros(2)}, "cpu", False)
    assert network_input is target and type(target) is torch.Tensor
    assert torch.equal(target, torch.as_tensor(image))


def test_keyword_arguments_reach_tensor_to():
    image, _ = prepare_pretext_batch({"image": torch.rand(1, 2, 4, 4, 4)}, memory_format=torch.channels_last_3d)
    assert image.is_contiguous(memory_format=torch.channels_last_3d)


def test_batch_without_image_is_named():
    with pytest.raises(KeyError, match=r"no 'image', only \['label'\]"):
        prepare_pretext_batch({"label": torch.zeros(1)})
