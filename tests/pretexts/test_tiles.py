"""Relative patch location and jigsaw: what the encoder sees is what the labels say."""

from __future__ import annotations

import itertools

import pytest
import torch

from common.losses import DrawnClassLoss
from common.pretexts import Jigsaw, RelativeLocation

CELLS = list(itertools.product(range(3), repeat=3))
OTHERS = [cell for cell in CELLS if cell != (1, 1, 1)]


@pytest.fixture
def image():
    """Each voxel tells its cell of 3 x 3 x 3, in row-major order, and its sample."""
    number = torch.arange(27.0).view(3, 3, 3)
    for axis in range(3):
        number = number.repeat_interleave(8, axis)
    return torch.stack([number, number + 100, number + 200])[:, None].repeat(4, 1, 1, 1, 1)


def seen_by(encoder):
    seen = []
    encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    return seen


def test_the_query_lies_where_the_label_says(unet, image):
    torch.manual_seed(0)
    encoder = unet()
    seen = seen_by(encoder)
    model = RelativeLocation(encoder)
    result = model(image)
    assert result["logits"].shape == (12, 26) and result["tiles"].shape == (12, 2, 1, 5, 5, 5)
    labels = result["labels"].tolist()
    assert len(set(labels)) > 5
    for number, (label, (middle, query)) in enumerate(zip(labels, seen[0].view(12, 2, -1), strict=True)):
        x, y, z = OTHERS[label]
        assert (middle == 100 * (number % 3) + 13).all()
        assert (query == 100 * (number % 3) + 9 * x + 3 * y + z).all()
    everything = {RelativeLocation(encoder)(image)["labels"].max().item() for _ in range(20)}
    assert max(everything) == 25


def test_the_tiles_stand_in_the_order_of_the_label(unet, image):
    torch.manual_seed(0)
    encoder = unet()
    seen = seen_by(encoder)
    model = Jigsaw(encoder, permutations=20)
    result = model(image)
    assert result["logits"].shape == (12, 20)
    for number, (label, tiles) in enumerate(zip(result["labels"].tolist(), seen[0].view(12, 27, -1), strict=True)):
        assert (tiles == tiles[:, :1]).all()  # a tile lies in one cell
        assert (tiles[:, 0] - 100 * (number % 3)).long().tolist() == model.orders[label].tolist()
    assert "orders" not in model.state_dict()


@pytest.mark.parametrize("make", [RelativeLocation, lambda encoder: Jigsaw(encoder, (2, 2, 2), 1, 20)])
def test_a_head_reads_the_tiles_apart(unet, image, make):
    """The encoder takes one tile at a time: with another second image, the answer for the first is the same."""
    model = make(unet())
    image = torch.randn(2, 1, 24, 24, 24)
    torch.manual_seed(1)
    both = model(image)["logits"]
    torch.manual_seed(1)
    other = model(torch.cat((image[:1], image[1:] * 2 + 1)))["logits"]
    assert torch.allclose(both[0], other[0], atol=1e-5) and not torch.allclose(both[1], other[1], atol=1e-3)


@pytest.mark.parametrize("make", [RelativeLocation, lambda encoder: Jigsaw(encoder, (2, 2, 2), 1, 20)])
def test_gradients_reach_the_whole_encoder(unet, make):
    model = make(unet())
    DrawnClassLoss()(model(torch.randn(2, 1, 24, 24, 24)), None).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if p.ndim > 1)


@pytest.mark.parametrize("make", [RelativeLocation, lambda encoder: Jigsaw(encoder, (2, 2, 1), 1, 6)])
def test_it_learns(unet, make):
    torch.manual_seed(0)
    place = torch.linspace(-1, 1, 24)
    image = torch.sin(6 * place).view(24, 1, 1) + 2 * place.view(24, 1) + place.square() * 4
    image = (image + 0.5 * place.view(24, 1, 1) * place).expand(12, 1, 24, 24, 24)
    model, loss = make(unet()), DrawnClassLoss()
    optimizer, values = torch.optim.Adam(model.parameters(), 3e-3), []
    for _ in range(40):
        value = loss(model(image), image)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert sum(values[-5:]) < 0.6 * sum(values[:5]), values


@pytest.mark.parametrize("make", [RelativeLocation, Jigsaw])
def test_an_encoder_with_a_decoder_is_refused(unet, make):
    with pytest.raises(ValueError, match="encoder#decoder to false"):
        make(unet(decoder=True))
