from __future__ import annotations

import math

import pytest
import torch

from common.losses import RCRLoss


def draw(batch=3):
    generator = torch.Generator().manual_seed(0)
    return {
        "rotation_logits": torch.randn(2 * batch, 4, generator=generator),
        "rotation": torch.randint(4, (2 * batch,), generator=generator),
        "contrast1": torch.randn(batch, 5, generator=generator),
        "contrast2": torch.randn(batch, 5, generator=generator),
        "reconstruction": torch.randn(2 * batch, 1, 4, 4, 4, generator=generator),
        "target": torch.randn(2 * batch, 1, 4, 4, 4, generator=generator),
    }


def by_hand(prediction, temperature):
    """The three losses with Python's arithmetic on numbers."""
    rotation = 0.0
    for logits, label in zip(prediction["rotation_logits"].tolist(), prediction["rotation"].tolist(), strict=True):
        rotation += math.log(sum(math.exp(x) for x in logits)) - logits[label]
    rotation /= len(prediction["rotation"])

    vectors = prediction["contrast1"].tolist() + prediction["contrast2"].tolist()
    vectors = [[x / math.hypot(*vector) for x in vector] for vector in vectors]
    count, contrast = len(vectors), 0.0
    for a in range(count):
        scores = [sum(x * y for x, y in zip(vectors[a], vectors[b], strict=True)) / temperature for b in range(count)]
        others = sum(math.exp(scores[b]) for b in range(count) if b != a)
        contrast += math.log(others) - scores[(a + count // 2) % count]
    contrast /= count

    pairs = zip(prediction["reconstruction"].flatten().tolist(), prediction["target"].flatten().tolist(), strict=True)
    differences = [abs(a - b) for a, b in pairs]
    return rotation, contrast, sum(differences) / len(differences)


@pytest.mark.parametrize("temperature", [0.5, 0.1])
@pytest.mark.parametrize("weights", [(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2, 3, 0.5)])
def test_is_the_weighted_sum_of_three_losses(weights, temperature):
    prediction = draw()
    loss = RCRLoss(*weights, temperature=temperature)(prediction, image=None)
    expected = sum(weight * part for weight, part in zip(weights, by_hand(prediction, temperature), strict=True))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_in_float32_under_autocast():
    prediction = {k: v.bfloat16() if v.is_floating_point() else v for k, v in draw().items()}
    with torch.autocast("cpu", torch.bfloat16):
        loss = RCRLoss()(prediction)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(sum(by_hand(prediction, 0.5)), rel=1e-5)
