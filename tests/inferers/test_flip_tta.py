from __future__ import annotations

import itertools

import pytest
import torch
from monai.inferers import SlidingWindowInferer

from common.inferers import MirroredSlidingWindowInferer


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def uneven(image):
    """A network that is not the same in the mirror."""
    ramp = torch.linspace(0, 1, image.shape[-1])
    return torch.cat((image * ramp, image.roll(1, dims=2), -image), dim=1)


def test_mean_probability_of_all_mirror_images():
    image = torch.randn(2, 1, 4, 6, 5)
    out = MirroredSlidingWindowInferer((4, 6, 5), 2, mirror_axes=(0, 2))(image, uneven)
    flips = [[2 + axis for axis in axes] for n in range(3) for axes in itertools.combinations((0, 2), n)]
    expected = torch.stack([uneven(image.flip(f)).softmax(1).flip(f) for f in flips]).mean(0)
    assert len(flips) == 4
    torch.testing.assert_close(out.softmax(1), expected, atol=1e-5, rtol=1e-4)


def test_the_answer_mirrors_with_the_image():
    image = torch.randn(1, 1, 8, 8, 8)
    inferer = MirroredSlidingWindowInferer((8, 8, 8), mirror_axes=(0, 1, 2))
    torch.testing.assert_close(
        inferer(image.flip(2, 4), uneven).flip(2, 4), inferer(image, uneven), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("mode", ["constant", "gaussian"])
def test_without_axes_it_is_monai_s(mode):
    image, settings = torch.randn(1, 1, 9, 8, 7), {"overlap": 0.5, "mode": mode}
    expected = SlidingWindowInferer((4, 4, 4), 3, **settings)(image, uneven)
    assert torch.equal(MirroredSlidingWindowInferer((4, 4, 4), 3, **settings)(image, uneven), expected)


def test_an_axis_that_is_not_there():
    with pytest.raises(ValueError, match="not all axes of an image"):
        MirroredSlidingWindowInferer((4, 4, 4), mirror_axes=(3,))(torch.ones(1, 1, 4, 4, 4), uneven)
