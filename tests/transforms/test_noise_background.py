from __future__ import annotations

import pytest
import torch

from common.transforms import NoiseBackgroundd


def test_inside_is_scaled_and_outside_is_noise():
    torch.manual_seed(0)
    image = torch.rand(1, 20, 20, 20) * 80 + 10
    image[:, :10] = 0
    image[:, 10] = -5
    transform = NoiseBackgroundd("image")
    made = transform({"image": image})["image"]
    inside = made[image > 0]
    assert abs(float(inside.mean())) < 1e-5 and float(inside.std(correction=0)) == pytest.approx(1, abs=1e-5)
    outside = made[image == 0]
    assert abs(float(outside.mean())) < 0.1 and float(outside.std()) == pytest.approx(1, abs=0.1)
    below = (-5 - image[image > 0].mean()) / image[image > 0].std(correction=0)
    torch.testing.assert_close(made[image < 0], below.expand(400))
    # The scan is the seed: it is prepared alike whatever came before it, and another has noise of its own.
    other = image.roll(1, dims=3)
    transform({"image": other})
    assert torch.equal(transform({"image": image})["image"], made)
    assert not torch.equal(transform({"image": other})["image"][image + other == 0], made[image + other == 0])


def test_nothing_to_scale_by():
    with pytest.raises(ValueError, match="no two different voxels above 0"):
        NoiseBackgroundd("image")({"image": torch.zeros(1, 2, 2, 2)})
