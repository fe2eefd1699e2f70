from __future__ import annotations

import torch
from monai.data import MetaTensor
from monai.transforms import Resize

from common.inferers import ResizedInferer


def test_the_network_sees_one_size_and_the_image_keeps_its_own():
    seen = []

    def network(image):
        seen.append(tuple(image.shape))
        return torch.cat([image, -image], 1)

    affine = torch.diag(torch.tensor([2.0, 3, 4, 1]))
    line = torch.linspace(0, 1, 24).view(1, 1, 1, 24, 1).expand(2, 1, 12, 24, 9)
    logits = ResizedInferer([6, 24, 9])(MetaTensor(line, affine=affine), network)
    assert seen == [(2, 1, 6, 24, 9)]
    assert logits.shape == (2, 2, 12, 24, 9) and torch.equal(logits.affine, affine)
    assert (logits[:, :1] - line).abs().max() < 0.02


def test_the_network_sees_what_it_was_trained_on():
    """Training resizes by `area`; a thin plane of an image does not fall between sampling points."""
    image = torch.zeros(1, 1, 20, 24, 9)
    image[:, :, 3] = 1
    seen = []

    def network(image):
        seen.append(image)
        return image

    ResizedInferer([5, 24, 18])(image, network)
    assert torch.equal(seen[0][0], Resize([5, 24, 18], mode="area")(image[0]).as_tensor())
    assert seen[0].sum() == image.sum() / 4 * 2
