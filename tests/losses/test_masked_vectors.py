import pytest
import torch

from common.losses import MaskedVectorsLoss

COUNTS = (9, 11, 4)  # of masked slices a plane


def prediction(batch=3, d=5, counts=COUNTS):
    torch.manual_seed(0)
    weight = torch.cat([torch.full((count,), 1 / count) for count in counts])
    return {
        "prediction": torch.randn(batch, sum(counts), d),
        "target": torch.randn(batch, sum(counts), d),
        "weight": weight,
    }


def slow(prediction, target, weight, counts=COUNTS):
    """The sum over planes of 1 / (B d |M|) times all squared differences."""
    total, start = 0.0, 0
    for count in counts:
        of_plane = slice(start, start + count)
        difference = prediction[:, of_plane] - target[:, of_plane]
        total += sum(float(x) ** 2 for x in difference.flatten()) / difference.numel()
        start += count
    return total


def test_equals_a_slow_reference_with_unequal_counts():
    values = prediction()
    assert MaskedVectorsLoss()(values).item() == pytest.approx(slow(**values), rel=1e-5)
    # A plain mean over all slices would be another number.
    plain = (values["prediction"] - values["target"]).square().mean().item()
    assert slow(**values) != pytest.approx(3 * plain, rel=1e-3)


def test_0_where_the_prediction_is_the_target_and_a_plane_counts_once():
    values = prediction()
    values["prediction"] = values["target"].clone()
    assert MaskedVectorsLoss()(values) == 0
    for start, count in ((0, 9), (9, 11), (20, 4)):
        moved = values["target"].clone()
        moved[:, start : start + count] += 2
        assert MaskedVectorsLoss()(values | {"prediction": moved}).item() == pytest.approx(4, rel=1e-5)


def test_the_gradient_reaches_the_prediction():
    values = prediction()
    values["prediction"].requires_grad_()
    MaskedVectorsLoss()(values).backward()
    expected = 2 * (values["prediction"] - values["target"]) * values["weight"][:, None] / (3 * 5)
    torch.testing.assert_close(values["prediction"].grad, expected.detach())


def test_in_float32():
    values = prediction()
    values["prediction"] = values["prediction"].bfloat16()
    loss = MaskedVectorsLoss()(values)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(slow(**values | {"prediction": values["prediction"].float()}), rel=1e-5)
