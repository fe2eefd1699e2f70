import pytest
import torch
from monai.transforms import GibbsNoise

from common.transforms import RandomTexture, gibbs_noise


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


OFF = {"noise_prob": 0, "gibbs_prob": 0, "scale_prob": 0, "shift_prob": 0}


@pytest.mark.parametrize("size", [(12, 16, 20), (9, 8, 7), (15, 10)])
def test_gibbs_equals_monai_sample_by_sample(size):
    image, alpha = torch.rand(3, 2, *size), torch.tensor([0.3, 0.85, 0.5])
    ours = gibbs_noise(image, alpha)
    for sample in range(3):
        expected = GibbsNoise(float(alpha[sample]))(image[sample])
        torch.testing.assert_close(ours[sample], torch.as_tensor(expected), atol=1e-5, rtol=1e-4)


def test_gibbs_of_strength_0_is_the_identity():
    image = torch.rand(2, 1, 8, 8, 8)
    ours = gibbs_noise(image, torch.tensor([0.0, 0.6]))
    assert torch.equal(ours[0], image[0]) and not torch.allclose(ours[1], image[1], atol=1e-2)


def test_nothing_drawn_nothing_done():
    image = torch.rand(4, 1, 8, 8, 8)
    assert torch.equal(RandomTexture(**OFF)(image), image)


def test_each_sample_its_own_draw_in_range():
    image = torch.rand(400, 1, 2, 2, 2) + 1
    factor = (RandomTexture(**OFF | {"scale_prob": 0.5})(image) / image).flatten(1)
    assert (factor - factor[:, :1]).abs().max() < 1e-5  # one factor a sample
    changed = (factor[:, 0] - 1).abs() > 1e-4
    assert 0.4 < changed.float().mean() < 0.6
    assert (factor[:, 0] - 1).abs().max() < 0.1001 and factor[:, 0].std() > 0.02
    shift = (RandomTexture(**OFF | {"shift_prob": 1.0})(image) - image).flatten(1)
    assert (shift - shift[:, :1]).abs().max() < 1e-5 and 0.05 < shift[:, 0].std() < 0.065


def test_noise_is_of_the_drawn_spread():
    noise = RandomTexture(**OFF | {"noise_prob": 0.5})(torch.zeros(300, 1, 8, 8, 8)).flatten(1)
    spread = noise.std(dim=1)
    assert 0.4 < (spread > 0).float().mean() < 0.6 and spread.max() < 0.11
    assert spread[spread > 0].mean() == pytest.approx(0.05, abs=0.01)


def test_follows_the_global_generator_and_keeps_the_input():
    image = torch.rand(2, 1, 8, 8, 8)
    before, texture = image.clone(), RandomTexture(noise_prob=1, gibbs_prob=1)
    torch.manual_seed(3)
    first = texture(image)
    torch.manual_seed(3)
    assert torch.equal(texture(image), first) and torch.equal(image, before)
    assert not torch.equal(texture(image), first)
