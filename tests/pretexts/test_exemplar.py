from __future__ import annotations

import pytest
import torch

from common.losses import PlaneTripletLoss
from common.pretexts import Exemplar
from common.transforms import RandomBezier, RandomDeformation

STILL = {"scaling": 0.0, "rotation": 0.0, "shearing": 0.0, "velocity": 0.0}


@pytest.fixture
def image():
    return torch.randn(3, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0)) - 5


def test_nothing_drawn_changes_nothing(unet, image):
    model = Exemplar(unet(), RandomDeformation(**STILL), RandomBezier(falling=0.0, strength=0.0))
    result = model(image)
    assert torch.allclose(result["changed"], image, atol=1e-3)
    assert torch.allclose(result["anchor"], result["positive"], atol=1e-3)
    assert result["anchor"].shape == (3, 1, 1024)


def test_a_mirrored_image_keeps_its_range(unet, image):
    torch.manual_seed(0)
    model = Exemplar(unet(), RandomDeformation(**STILL, flip_axis=0), RandomBezier(falling=0.0, strength=0.0))
    image = image.repeat(4, 1, 1, 1, 1)
    pairs = list(zip(model.change(image), image, strict=True))
    same = [torch.allclose(one, other, atol=1e-3) for one, other in pairs]
    flipped = [torch.allclose(one, other.flip(1), atol=1e-3) for one, other in pairs]
    assert all(a != b for a, b in zip(same, flipped, strict=True)) and any(same) and any(flipped)
    # By default what comes in from outside is the least value, and nothing leaves the range.
    changed = Exemplar(unet()).change(image)
    least, highest = image.amin((1, 2, 3, 4)), image.amax((1, 2, 3, 4))
    assert torch.allclose(changed.amin((1, 2, 3, 4)), least, atol=1e-4)
    assert (changed.amax((1, 2, 3, 4)) <= highest + 1e-4).all()


@torch.no_grad()
def test_codes_are_those_of_each_image_alone(unet, image):
    torch.manual_seed(0)
    model = Exemplar(unet(), size=5).eval()
    result = model(image)
    loss = 0.0
    for number in range(3):
        for name, volume in (("anchor", result["changed"]), ("positive", image)):
            deepest = model.encoder(volume[number][None])[-1]
            assert deepest.shape[2:] == (2, 2, 2)
            code = 1 / (1 + (-model.head(deepest.flatten(1))).exp())
            assert torch.allclose(result[name][number], code, atol=1e-5)
        apart = [
            (result["anchor"][number, 0] - other).square().sum().sqrt()
            for other in (result["positive"][number, 0], result["anchor"][number - 1, 0])
        ]
        loss += max(0.0, float(apart[0] - apart[1] + 1)) / 3
    assert float(PlaneTripletLoss()(result, image)) == pytest.approx(loss, abs=1e-4)


def test_it_learns_and_gradients_reach_the_whole_encoder(unet):
    torch.manual_seed(0)
    image = torch.randn(4, 1, 2, 2, 2).repeat_interleave(4, 2).repeat_interleave(4, 3).repeat_interleave(4, 4)
    model, loss, values = Exemplar(unet()), PlaneTripletLoss(), []
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(20):
        value = loss(model(image), image)
        optimizer.zero_grad()
        value.backward()
        if not values:
            assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.encoder.parameters() if p.ndim > 1)
        optimizer.step()
        values.append(value.item())
    assert sum(values[-4:]) < 0.5 * sum(values[:4]), values


def test_an_encoder_with_a_decoder_is_refused(unet):
    with pytest.raises(ValueError, match="encoder#decoder to false"):
        Exemplar(unet(decoder=True))
