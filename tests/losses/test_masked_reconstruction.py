from __future__ import annotations

import torch

from common.losses import MaskedReconstructionLoss


def draw(shape=(2, 3, 8)):
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name in ("patches", "target")}


def slow(prediction):
    errors = []
    for sample in range(2):
        for patch in range(3):
            target = prediction["target"][sample, patch]
            errors.append(
                sum((a - b) ** 2 for a, b in zip(prediction["patches"][sample, patch], target, strict=True)) / 8
            )
    return sum(errors) / 6


def test_against_a_loop_over_patches():
    prediction = draw()
    loss = MaskedReconstructionLoss()(prediction, image=None)
    torch.testing.assert_close(loss, slow(prediction))


def test_zero_at_the_target():
    prediction = draw()
    assert MaskedReconstructionLoss()(prediction | {"patches": prediction["target"]}) == 0


def test_in_float32_under_autocast():
    prediction = draw()
    half = {name: value.bfloat16() for name, value in prediction.items()}
    with torch.autocast("cpu", torch.bfloat16):
        loss = MaskedReconstructionLoss()(half)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, slow({name: value.float() for name, value in half.items()}))
