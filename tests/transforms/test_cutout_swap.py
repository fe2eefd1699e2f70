import pytest
import torch

from common.transforms import CutoutSwap
from common.transforms.cutout_swap import draw_boxes, fill_boxes


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def numbered(batch, size=(20, 24, 28), channels=1):
    """Sample b holds b + 2 everywhere, out of the noise's range 0 .. 1."""
    values = torch.arange(2.0, batch + 2)
    return values.view(batch, 1, *(1 for _ in size)).expand(batch, channels, *size).clone()


@pytest.mark.parametrize("size", [(12,), (12, 10), (12, 10, 8)])
def test_fill_boxes_equals_a_loop_over_boxes(size):
    starts, ends, used = draw_boxes(torch.tensor([40.0, 0.0, 11.0]), size, 0.1, 0.6)
    expected = torch.zeros(3, 1, *size, dtype=torch.bool)
    for sample in range(3):
        for start, end, take in zip(starts[sample], ends[sample], used[sample], strict=True):
            if take:
                expected[(sample, 0, *(slice(int(s), int(e)) for s, e in zip(start, end, strict=True)))] = True
    assert expected[0].any() and not expected[1].any()
    assert torch.equal(fill_boxes(starts, ends, used, size), expected)


def test_boxes_stop_at_the_first_that_reaches_the_target():
    size, targets = (40, 60, 80), torch.tensor([0.0, 1.0, 3000.0, 40000.0])
    starts, ends, used = draw_boxes(targets, size, 0.05, 0.25)
    volumes = (ends - starts).prod(dim=-1) * used
    assert used.sum(dim=1)[:2].tolist() == [0, 1]
    assert used[3].all()
    for sample in (1, 2, 3):
        count = int(used[sample].sum())
        assert used[sample, :count].all()
        assert volumes[sample].sum() >= targets[sample] > volumes[sample, : count - 1].sum()


def test_sides_and_starts_have_the_published_ranges():
    size = (40, 60, 80)
    starts, ends, _ = draw_boxes(torch.full((4,), 192000.0), size, 0.05, 0.25)
    sides = (ends - starts).flatten(0, 1)
    starts = starts.flatten(0, 1)
    for axis, side in enumerate(size):
        shortest, longest = side // 20, side // 4 - 1
        inner = sides[starts[:, axis] <= side - longest, axis]
        assert inner.unique().tolist() == list(range(shortest, longest + 1))
        assert inner.float().mean() == pytest.approx((shortest + longest) / 2, rel=0.05)
        assert starts[:, axis].min() == 0 and starts[:, axis].max() == side - shortest - 1
        assert sides[:, axis].min() == shortest and ends[..., axis].max() == side


def test_one_sample_gets_noise_only():
    image = numbered(1)
    altered = CutoutSwap()(image)
    changed = altered != image
    assert changed.any() and not changed.all()
    assert altered[changed].min() >= 0 and altered[changed].max() <= 1
    assert torch.equal(image, numbered(1))


def test_noise_is_min_max_scaled_gaussian_noise():
    image = torch.full((1, 1, 32, 32, 32), 5.0)
    transform = CutoutSwap(max_share=1.0)
    values = torch.cat([altered[altered != 5] for altered in (transform(image) for _ in range(4))])
    assert values.min() >= 0 and values.max() <= 1
    assert values.mean() == pytest.approx(0.5, abs=0.06)
    assert 0.08 < values.std() < 0.2
    skewness = ((values - values.mean()) ** 3).mean() / values.std() ** 3
    kurtosis = ((values - values.mean()) ** 4).mean() / values.std() ** 4
    assert abs(skewness) < 0.1 and kurtosis == pytest.approx(3, abs=0.2)  # uniform noise has 1.8


def test_each_sample_is_noise_itself_and_at_most_one_other():
    batch = 6
    image = numbered(batch, channels=2)
    partners = 0
    for _ in range(10):
        altered = CutoutSwap()(image)
        for sample in range(batch):
            values = altered[sample]
            others = values[values > 1].unique().tolist()
            others.remove(sample + 2)
            assert len(others) <= 1 and set(others) <= {float(b + 2) for b in range(batch)}
            partners += len(others)
            swapped = (values > 1) & (values != sample + 2)
            assert torch.equal(swapped[0], swapped[1])
            assert torch.equal(values[0] <= 1, values[1] <= 1)
    # A sample draws itself with probability 1/6 and is then not swapped.
    assert 36 <= partners < 60


def test_swap_copies_the_same_place():
    image = torch.arange(2 * 20 * 20 * 20, dtype=torch.float32).view(2, 1, 20, 20, 20) + 2
    for _ in range(20):
        altered = CutoutSwap()(image)
        kept = (altered == image) | (altered <= 1)
        assert torch.equal(altered[~kept], image.flip(0)[~kept])


def test_shares_have_the_mean_of_the_uniform_target():
    """Boxes of one voxel do not overshoot; with a small target overlaps hardly matter."""
    image = numbered(1, size=(24, 24, 24)).expand(64, -1, -1, -1, -1) * 1.0
    transform = CutoutSwap(max_share=0.05, min_size=0.01, max_size=0.02)
    altered = transform(image)
    shares = (altered <= 1).float().flatten(1).mean(dim=1)
    assert shares.max() <= 0.05
    assert shares.mean() == pytest.approx(0.025, abs=0.006)
    assert shares.std() > 0.01  # each sample has a target of its own


def test_seeded_by_the_global_generator():
    image = torch.rand(3, 1, 16, 16, 16)
    torch.manual_seed(5)
    first = CutoutSwap()(image)
    second = CutoutSwap()(image)
    torch.manual_seed(5)
    assert torch.equal(CutoutSwap()(image), first)
    assert not torch.equal(first, second)


def test_nothing_to_cut():
    image = torch.rand(2, 1, 8, 8, 8)
    assert torch.equal(CutoutSwap(max_share=0.0)(image), image)


@pytest.mark.parametrize("shape", [(2, 1, 3, 3, 3), (2, 1, 9, 5), (2, 1, 30), (1, 1, 1, 1, 1)])
def test_small_and_other_dimensional_images(shape):
    image = torch.full(shape, 7.0)
    image[1:] = 8.0
    for _ in range(5):
        altered = CutoutSwap()(image)
        assert altered.shape == image.shape and torch.isfinite(altered).all()


@pytest.mark.parametrize("arguments", [{"max_share": 1.5}, {"max_share": -0.1}, {"min_size": 0.3}, {"max_size": 1.2}])
def test_rejects_arguments(arguments):
    with pytest.raises(ValueError, match="Cut-out needs"):
        CutoutSwap(**arguments)


def test_rejects_an_image_without_spatial_axes():
    with pytest.raises(ValueError, match="batch"):
        CutoutSwap()(torch.zeros(2, 3))
