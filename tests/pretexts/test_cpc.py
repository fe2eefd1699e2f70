from __future__ import annotations

import math

import pytest
import torch

from common.losses import PredictedCodesLoss
from common.pretexts import CPC


def slow(codes, predictions, predicted):
    """A prediction at a time, against every code of the batch."""
    every = [code for image in codes.tolist() for code in image]
    values = []
    for made, numbers, own in zip(predictions.tolist(), predicted.tolist(), codes.tolist(), strict=True):
        for vector, number in zip(made, numbers, strict=True):
            scores = [math.exp(sum(x * y for x, y in zip(vector, code, strict=True))) for code in every]
            right = math.exp(sum(x * y for x, y in zip(vector, own[number], strict=True)))
            values.append(-math.log(right / sum(scores)))
    return sum(values) / len(values)


def test_the_loss_equals_a_slow_reference():
    torch.manual_seed(0)
    parts = {"codes": torch.randn(3, 8, 5), "predictions": torch.randn(3, 6, 5), "predicted": torch.randint(8, (3, 6))}
    assert float(PredictedCodesLoss()(parts)) == pytest.approx(slow(**parts), rel=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert float(PredictedCodesLoss()(parts)) == pytest.approx(slow(**parts), rel=1e-5)
    # A right prediction of long codes costs next to nothing.
    codes = 10 * torch.eye(24).view(3, 8, 24)
    right = {"codes": codes, "predictions": codes[:, [1, 3]], "predicted": torch.tensor([1, 3]).expand(3, -1)}
    assert float(PredictedCodesLoss()(right)) < 1e-5


@torch.no_grad()
def test_codes_are_of_each_cell_and_predictions_of_cells_ahead(unet):
    torch.manual_seed(0)
    image = torch.randn(2, 1, 24, 24, 24)
    model = CPC(unet(), (3, 3, 3), 0, (1, 2), 6)
    result = model(image)
    assert result["codes"].shape == (2, 27, 6) and result["predictions"].shape == (2, 18 + 9, 6)
    for number in (0, 5, 26):
        x, y, z = (8 * part for part in (number // 9, number // 3 % 3, number % 3))
        deepest = model.encoder(image[1:, :, x : x + 8, y : y + 8, z : z + 8])[-1]
        assert deepest.shape[2:] == (2, 2, 2)
        assert torch.allclose(model.code(deepest.flatten(1))[0], result["codes"][1, number], atol=1e-5)
    assert result["predicted"][0].tolist() == [*range(9, 27), *range(18, 27)]
    context = model.context(result["codes"].transpose(1, 2).reshape(2, 6, 3, 3, 3))
    for step, row, source in ((0, 4, 4), (0, 17, 17), (1, 18 + 2, 2)):
        one = context[0, :, source // 9, source // 3 % 3, source % 3]
        assert torch.allclose(model.predict[step].weight @ one, result["predictions"][0, row], atol=1e-5)


def test_no_prediction_sees_the_layers_ahead(unet):
    """Changing the codes of a layer changes the context of that layer and of later ones alone."""
    torch.manual_seed(0)
    model = CPC(unet(), (4, 3, 3), 0, (1,), 6)
    codes = torch.randn(1, 6, 4, 3, 3)
    for layer in range(4):
        changed = codes.clone()
        changed[:, :, layer, 1, 1] += 1
        same = (model.context(codes) - model.context(changed)).abs().amax((0, 1, 3, 4)) < 1e-6
        assert same.tolist() == [other < layer for other in range(4)]


def test_it_learns_and_gradients_reach_the_whole_encoder(unet):
    torch.manual_seed(0)
    image = torch.randn(3, 1, 3, 3, 3).repeat_interleave(8, 2).repeat_interleave(8, 3).repeat_interleave(8, 4)
    image = image + 0.5 * torch.linspace(-1, 1, 24)
    model, loss, values = CPC(unet(), (3, 3, 3), 1, (1,), 16), PredictedCodesLoss(), []
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(25):
        value = loss(model(image), image)
        optimizer.zero_grad()
        value.backward()
        if not values:
            assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if p.ndim > 1)
        optimizer.step()
        values.append(value.item())
    assert sum(values[-4:]) < 0.6 * sum(values[:4]), values


@pytest.mark.parametrize("steps", [(), (0,), (1, 4)])
def test_steps_that_lead_nowhere_are_refused(unet, steps):
    with pytest.raises(ValueError, match="must be between 1 and 3"):
        CPC(unet(), (4, 4, 4), steps=steps)


def test_an_encoder_with_a_decoder_is_refused(unet):
    with pytest.raises(ValueError, match="encoder#decoder to false"):
        CPC(unet(decoder=True))
