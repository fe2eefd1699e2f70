from __future__ import annotations

import numpy as np
import pytest
import torch

from common.losses import DrawnClassLoss
from common.pretexts import Rotation

# Plane, in axes of (x, y, z), and quarter turns of the classes, as the docstring counts them.
TURNS = [((0, 1), 0)] + [(plane, k) for plane in ((0, 1), (1, 2), (0, 2)) for k in (1, 2, 3)]


@pytest.fixture
def image():
    return torch.randn(10, 2, 4, 4, 4, generator=torch.Generator().manual_seed(0))


def test_each_class_is_numpys_turn_and_all_differ(unet, image):
    turned = Rotation(unet()).turn(image[:1].expand(10, -1, -1, -1, -1), torch.arange(10))
    for (plane, k), volume in zip(TURNS, turned.numpy(), strict=True):
        for channel, original in zip(volume, image[0].numpy(), strict=True):
            assert np.array_equal(channel, np.rot90(original, k, plane))
    assert len({volume.numpy().tobytes() for volume in turned}) == 10


def test_the_encoder_sees_what_the_labels_say(unet):
    torch.manual_seed(0)
    encoder, image = unet(), torch.randn(12, 1, 16, 16, 16)
    seen = []
    encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model = Rotation(encoder)
    result = model(image)
    assert torch.equal(seen[0], result["turned"]) and len(set(result["labels"].tolist())) > 4
    for one, label, volume in zip(image, result["labels"].tolist(), seen[0], strict=True):
        plane, k = TURNS[label]
        assert torch.equal(volume, torch.rot90(one, k, [axis + 1 for axis in plane]))
    for one, logits in zip(result["turned"], result["logits"], strict=True):
        deepest = encoder(one[None])[-1][0]  # 4 x 4 x 4 cells
        halves = [deepest[:, :2], deepest[:, 2:]]
        halves = [[half[:, :, :2], half[:, :, 2:]] for half in halves]
        means = [part.mean((1, 2, 3)) for pair in halves for half in pair for part in (half[..., :2], half[..., 2:])]
        assert torch.allclose(logits, model.head(torch.stack(means, 1).flatten()), atol=1e-5)


def test_the_loss_is_the_mean_of_the_labels_log_chances():
    logits, labels = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0]]), torch.tensor([0, 1])
    chances = [np.exp(row) / np.exp(row).sum() for row in logits.numpy()]
    expected = -np.mean([np.log(chances[0][0]), np.log(chances[1][1])])
    assert float(DrawnClassLoss()({"logits": logits, "labels": labels})) == pytest.approx(expected, abs=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        value = DrawnClassLoss()({"logits": logits.bfloat16(), "labels": labels}, None)
    assert value.dtype == torch.float32


def test_gradients_reach_the_whole_encoder(unet):
    model = Rotation(unet())
    DrawnClassLoss()(model(torch.randn(2, 1, 16, 16, 16)), None).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.encoder.parameters() if p.ndim > 1)


def test_it_learns(unet):
    torch.manual_seed(0)
    place = torch.linspace(-1, 1, 8)
    image = place.view(8, 1, 1) + 2 * place.view(8, 1).square() + 3 * place.abs().sqrt() * place.sign()
    image = image.expand(20, 1, 8, 8, 8)
    model, loss = Rotation(unet()), DrawnClassLoss()
    optimizer, values = torch.optim.Adam(model.parameters(), 1e-2), []
    for _ in range(80):
        value = loss(model(image), image)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert sum(values[-5:]) < 0.5 * sum(values[:5]), values


@pytest.mark.parametrize("size", [(8, 8, 16), (16, 8, 8)])
def test_what_is_no_cube_is_refused(unet, size):
    with pytest.raises(ValueError, match=r"--crop_size \[8, 8, 8\]"):
        Rotation(unet())(torch.randn(1, 1, *size))


def test_an_encoder_with_a_decoder_is_refused(unet):
    with pytest.raises(ValueError, match="encoder#decoder to false"):
        Rotation(unet(decoder=True))
