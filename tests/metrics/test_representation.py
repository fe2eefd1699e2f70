import math

import pytest
import torch
from monai.metrics import compute_embedding_collapse

from common.metrics import effective_rank, feature_std, position_cosines, retrieval_rate


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("channels", [8, 64, 384])
def test_std_of_evenly_spread_vectors(channels):
    assert feature_std(torch.randn(5000, channels)).item() == pytest.approx(1 / math.sqrt(channels), rel=0.01)


def test_std_ignores_length_and_vanishes_for_one_direction():
    features = torch.randn(20, 6)
    lengths = torch.rand(20, 1) + 0.1
    torch.testing.assert_close(feature_std(features * lengths), feature_std(features))
    assert feature_std(torch.randn(1, 6) * lengths) < 1e-6


def test_std_written_out():
    features = torch.randn(7, 3)
    unit = [[float(value) / math.sqrt(sum(float(v) ** 2 for v in row)) for value in row] for row in features]
    columns = list(zip(*unit, strict=True))
    means = [sum(column) / 7 for column in columns]
    stds = [
        math.sqrt(sum((v - mean) ** 2 for v in column) / 7) for column, mean in zip(columns, means, strict=True)
    ]  # fmt: skip
    assert feature_std(features).item() == pytest.approx(sum(stds) / 3, rel=1e-5)


@pytest.mark.parametrize("directions", [1, 3, 8])
def test_rank_counts_directions_of_equal_spread(directions):
    axes = torch.linalg.qr(torch.randn(10, 10)).Q[:directions]
    features = torch.cat([axes, -axes]) * 5 + torch.randn(10)
    assert effective_rank(features).item() == pytest.approx(directions, rel=1e-3)


def test_rank_of_unequal_spread():
    """Singular values in the ratio 3 to 1: the exponential of the entropy of (3/4, 1/4)."""
    features = torch.tensor([[3.0, 0], [-3, 0], [0, 1], [0, -1]])
    expected = math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert effective_rank(features).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(50, 8), (8, 50)])
def test_rank_equals_monai(shape):
    features = torch.randn(shape) @ torch.diag(torch.rand(shape[1])) + 3
    score = compute_embedding_collapse(features, include_indicators=["effective_rank"])["effective_rank_score"]
    expected = (1 - score.item()) * min(shape[0] - 1, shape[1])
    assert effective_rank(features).item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("noise", [0.0, 1e-8])
def test_rank_of_equal_vectors_is_zero(noise):
    row = torch.randn(1, 32)
    assert effective_rank(row.expand(20, 32) + noise * torch.randn(20, 32)).item() == 0


def test_half_precision_input():
    features = torch.randn(50, 8).bfloat16()
    assert feature_std(features) == feature_std(features.float())
    assert effective_rank(features) == effective_rank(features.float())


@pytest.mark.parametrize("measure", [feature_std, effective_rank])
@pytest.mark.parametrize("shape", [(1, 8), (8,), (2, 3, 4)])
def test_rejects_shapes(measure, shape):
    with pytest.raises(ValueError, match="at least two"):
        measure(torch.zeros(shape))


def test_position_cosines_are_means_over_pairs():
    torch.manual_seed(0)
    tokens = torch.randn(3, 4, 6)
    unit = torch.nn.functional.normalize(tokens, dim=2)
    same, other = [], []
    for i, j in ((0, 1), (0, 2), (1, 2)):
        for m in range(4):
            for n in range(4):
                (same if m == n else other).append(float(unit[i, m] @ unit[j, n]))
    found = position_cosines(tokens)
    assert float(found[0]) == pytest.approx(sum(same) / len(same), abs=1e-6)
    assert float(found[1]) == pytest.approx(sum(other) / len(other), abs=1e-6)


def test_position_cosines_tell_the_collapse_by_position():
    places = torch.eye(5, 8).expand(3, 5, 8)
    same, other = position_cosines(places * torch.tensor([1.0, 2.0, 3.0])[:, None, None])
    assert same.item() == pytest.approx(1) and other.item() == pytest.approx(0, abs=1e-6)


def test_position_cosines_of_one_token_or_one_volume():
    same, other = position_cosines(torch.ones(2, 1, 3))
    assert same.item() == pytest.approx(1) and other.isnan()
    with pytest.raises(ValueError, match="at least two volumes"):
        position_cosines(torch.ones(1, 4, 3))


def test_retrieval_finds_what_says_its_volume():
    content = torch.randn(5, 7, 32)
    position = torch.randn(1, 7, 32).expand(5, 7, 32)
    masked = content + 0.1 * torch.randn(5, 7, 32)
    assert retrieval_rate(masked, content).item() == 1.0
    # pushed apart, so that cosines are low, without a word of the volume
    apart = [retrieval_rate(torch.randn(5, 7, 32), content).item() for _ in range(20)]
    assert sum(apart) / 20 == pytest.approx(0.2, abs=0.05)
    # a code of the position alone is at chance exactly, not always or never right
    assert retrieval_rate(position, position).item() == pytest.approx(0.2)


def test_retrieval_compares_within_a_position():
    tokens = torch.randn(3, 1, 8).expand(3, 6, 8)
    order = torch.tensor([1, 2, 0])
    assert retrieval_rate(tokens, tokens).item() == 1.0
    assert retrieval_rate(tokens, tokens[order]).item() == 0.0


@pytest.mark.parametrize("shapes", [((1, 2, 3), (1, 2, 3)), ((2, 2, 3), (2, 3, 3)), ((2, 3), (2, 3))])
def test_retrieval_needs_two_volumes(shapes):
    with pytest.raises(ValueError, match="at least two volumes"):
        retrieval_rate(torch.ones(shapes[0]), torch.ones(shapes[1]))
