from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage as ndi

from common.transforms import SyntheticContrast
from common.transforms.synthetic_contrast import blur, rescale

PLAIN = {"std": (0, 0), "black": 0, "dark": 0, "bias": 0, "gamma": 0, "sharp": 1, "blur_jitter": 1}


@pytest.fixture
def labels():
    """Boxes of five labels, each wide enough for its middle to be free of the others' blur."""
    made = torch.zeros(1, 1, 32, 32, 32, dtype=torch.uint8)
    for label in range(1, 5):
        made[..., 6 * label : 6 * label + 6, 4:28, 4:28] = label
    return made


def test_each_label_has_an_intensity_of_its_own(labels):
    torch.manual_seed(0)
    image = SyntheticContrast(**PLAIN).draw_intensities(labels.repeat(4, 1, 1, 1, 1))
    for sample in image:
        values = [sample[0][labels[0, 0] == label].unique() for label in range(5)]
        assert all(len(v) == 1 and 25 <= v <= 225 for v in values) and len({float(v) for v in values}) == 5
    assert image[0].unique().tolist() != image[1].unique().tolist()


def test_means_and_deviations_fill_their_ranges(labels):
    torch.manual_seed(0)
    paint = SyntheticContrast(mean=(50, 100), std=(4, 8), black=0, dark=0)
    inside = labels[0, 0] == 2
    many = torch.stack([paint.draw_intensities(labels)[0, 0][inside] for _ in range(300)])
    means, deviations = many.mean(1), many.std(1)
    assert 49 < means.min() < 53 and 97 < means.max() < 101 and abs(means.mean() - 75) < 3
    assert 3.8 < deviations.min() < 4.4 and 7.6 < deviations.max() < 8.3


@pytest.mark.parametrize("parts", [1, 3])
def test_a_known_contrast_keeps_its_ranges_in_its_share_of_images(labels, parts):
    dark, bright = [1, 3], [2, 200]
    paint = SyntheticContrast(
        **{**PLAIN, "std": (0, 0)}, known=[(dark, (30, 40)), (bright, (200, 210))], known_share=0.5, parts=parts
    )
    torch.manual_seed(0)
    images = torch.cat([paint.draw_intensities(labels) for _ in range(200)])
    known = 0
    for image in images:
        low, high = image[0][labels[0, 0] == 1], image[0][labels[0, 0] == 2]
        inside = bool(low.min() >= 30 and low.max() <= 40 and high.min() >= 200 and high.max() <= 210)
        known += inside
    assert 75 <= known <= 125
    # A label that the table does not name keeps the general range in all images.
    others = torch.stack([image[0][labels[0, 0] == 4].mean() for image in images])
    assert others.min() < 60 and others.max() > 190


def test_groups_share_a_gaussian(labels):
    torch.manual_seed(0)
    image = SyntheticContrast(**PLAIN, shared=[(3, 1), (2, 4), (7, 200)]).draw_intensities(labels)[0, 0]
    value = [float(image[labels[0, 0] == label].unique()) for label in range(5)]
    assert value[1] == value[3] and value[2] == value[4] and len(set(value)) == 3


def test_the_background_is_black_or_dark_or_a_label(labels):
    torch.manual_seed(0)
    paint = SyntheticContrast(std=(0, 0), black=0.3, dark=0.3)
    outside = labels[0, 0] == 0
    air = torch.stack([paint.draw_intensities(labels)[0, 0][outside].mean() for _ in range(300)])
    black, dark = (air == 0).float().mean(), ((air > 0) & (air < 20)).float().mean()
    assert abs(black - 0.3) < 0.1 and abs(dark - 0.3) < 0.1 and (air >= 25).any()
    assert paint.draw_intensities(labels)[0, 0][~outside].min() >= 25


def test_what_surrounds_an_organ_is_stripped_in_some_samples(labels):
    torch.manual_seed(0)
    image = SyntheticContrast(**PLAIN, outside=[3, 4], strip=0.5).draw_intensities(labels.repeat(40, 1, 1, 1, 1))[:, 0]
    inside, around, air = (labels[0, 0] == 2, labels[0, 0] >= 3, labels[0, 0] == 0)
    stripped = [len(sample[around | air].unique()) == 1 for sample in image]
    kept = [len(sample[around | air].unique()) == 3 for sample in image]
    assert 8 < sum(stripped) < 32 and sum(stripped) + sum(kept) == 40
    assert all(float(sample[inside].unique()) != float(sample[air].unique()) for sample in image)


def test_parts_cut_labels_without_crossing_them(labels):
    torch.manual_seed(0)
    image = SyntheticContrast(**PLAIN, parts=3).draw_intensities(labels.repeat(8, 1, 1, 1, 1))
    counts = []
    for sample in image[:, 0]:
        values = [set(sample[labels[0, 0] == label].unique().tolist()) for label in range(5)]
        counts += [len(v) for v in values]
        assert sum(len(v) for v in values) == len(set().union(*values))  # no intensity in two labels
    assert set(counts) == {1, 2, 3}


def test_images_lie_between_0_and_1_and_keep_the_order_of_gamma(labels):
    torch.manual_seed(0)
    plain = {**PLAIN, "gamma": 0}
    image = SyntheticContrast()(labels.repeat(6, 1, 1, 1, 1))
    assert image.shape == (6, 1, 32, 32, 32) and image.dtype == torch.float32
    assert image.min() >= 0 and image.max() <= 1 and image.isfinite().all()
    torch.manual_seed(5)
    without = SyntheticContrast(**plain)(labels)
    torch.manual_seed(5)
    curved = SyntheticContrast(**{**plain, "gamma": 0.5})(labels)
    middles = [(6 * label + 3, 16, 16) for label in range(1, 5)]
    before, after = ([float(i[0, 0][m]) for m in middles] for i in (without, curved))
    assert np.argsort(before).tolist() == np.argsort(after).tolist() and not np.allclose(before, after)


def test_bias_is_a_smooth_positive_factor(labels):
    even = torch.zeros_like(labels)
    even[..., 0, 0, 0] = 1  # rescaling needs a second value
    torch.manual_seed(2)
    image = SyntheticContrast(**{**PLAIN, "bias": 0.7, "mean": (60, 60), "sharp": 1})(even)
    step = torch.stack([image.diff(dim=axis).abs().amax() for axis in (2, 3, 4)]).amax()
    assert image.std() > 0.05 and step < 0.1


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("sigma", [0.5, 1.7, 3.0])
def test_blur_is_scipys(axis, sigma):
    image = torch.rand(2, 12, 9, 11, generator=torch.Generator().manual_seed(0))
    radius = max(1, int(np.ceil(2.5 * sigma)))
    expected = ndi.gaussian_filter1d(image.numpy(), sigma, axis + 1, mode="nearest", radius=radius)
    np.testing.assert_allclose(blur(image, [sigma if a == axis else 0 for a in range(3)]), expected, atol=1e-5)


def test_a_thick_acquisition_has_only_its_own_slices():
    """Slices of 4 mm of a 1 mm image: what lies between their middles is on the line between two of them."""
    image = torch.rand(1, 16, 6, 6, generator=torch.Generator().manual_seed(0))
    paint = SyntheticContrast(**PLAIN)
    seen = paint.acquire(image, [4.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0])
    sharp = ndi.gaussian_filter(image[0].numpy(), 0.5, mode="nearest", radius=2)
    middles = np.arange(4) * 4 + 2
    expected = np.empty((16, 6, 6), np.float32)
    for x, y in np.ndindex(6, 6):
        expected[:, x, y] = np.interp(np.arange(16), middles - 0.5, sharp[middles, x, y])
    np.testing.assert_allclose(seen[0], expected, atol=1e-4)


def test_resolutions_are_even_or_of_slices_or_sharp():
    torch.manual_seed(0)
    paint = SyntheticContrast(thick=4, thick_slices=8, isotropic=0.3, sharp=0.2)
    voxel, thickness = paint.draw_resolution(2000, [1.0, 2.0, 1.0], torch.device("cpu"))
    own = torch.tensor([1.0, 2.0, 1.0])
    coarse = (voxel > own).sum(1)
    assert abs((coarse == 0).float().mean() - 0.2) < 0.03
    assert (
        abs((coarse == 3).float().mean() - 0.8 * 0.3) < 0.03 and ((coarse == 1) | (coarse == 3) | (coarse == 0)).all()
    )
    assert voxel[coarse == 3].max() <= 4 < voxel[coarse == 1].max() <= 8
    assert (thickness >= own).all() and (thickness <= voxel + 1e-6).all()


def test_noise_is_as_strong_as_said(labels):
    even = torch.full((1, 16, 16, 16), 0.5)
    paint = SyntheticContrast(**PLAIN, noise=0.1)
    torch.manual_seed(0)
    deviation = torch.stack([paint.acquire(even, [1.0] * 3, [1.0] * 3, [1.0] * 3).std() for _ in range(60)])
    assert deviation.max() < 0.105 and deviation.max() > 0.09 and deviation.min() < 0.01


def test_channels_have_contrasts_of_their_own(labels):
    torch.manual_seed(0)
    image = SyntheticContrast(channels=3)(labels)
    assert image.shape == (1, 3, 32, 32, 32) and not torch.equal(image[:, 0], image[:, 1])


def test_each_channel_has_a_resolution_of_its_own(labels, monkeypatch):
    """Labels to images, channel by channel: each is drawn in a voxel size, a thickness and a blur of its own."""
    seen, paint = [], SyntheticContrast(channels=3, sharp=0)
    plain = paint.acquire
    monkeypatch.setattr(paint, "acquire", lambda image, *drawn: seen.append(drawn) or plain(image, *drawn))
    torch.manual_seed(0)
    image = paint(labels.repeat(2, 1, 1, 1, 1))
    assert image.shape == (2, 3, 32, 32, 32) and len(seen) == 6
    for part, count in zip(zip(*seen, strict=True), (6, 6, 1, 6), strict=True):  # voxel, thickness, spacing, blur
        assert len({tuple(values) for values in part}) == count
    monkeypatch.setattr(paint, "acquire", lambda image, *drawn: image)
    torch.manual_seed(0)
    sharp = paint(labels.repeat(2, 1, 1, 1, 1))
    monkeypatch.setattr(paint, "acquire", plain)
    for number, drawn in enumerate(seen):  # in the order of samples and channels
        sample, channel = divmod(number, 3)
        alone = paint.acquire(sharp[sample, channel : channel + 1], *drawn)
        assert torch.equal(alone[0], image[sample, channel])


def test_the_blur_varies_within_its_factor(labels, monkeypatch):
    widths = []
    monkeypatch.setattr("common.transforms.synthetic_contrast.blur", lambda image, sigma: widths.extend(sigma) or image)
    torch.manual_seed(0)
    SyntheticContrast(**{**PLAIN, "blur_jitter": 1.1})(labels.repeat(100, 1, 1, 1, 1))
    factors = torch.tensor(widths) / 0.5
    assert 1 / 1.1 <= factors.min() < 0.92 and 1.09 < factors.max() <= 1.1 and len(set(widths)) == 300


def test_the_defaults_are_those_of_the_published_generator():
    """BBillot/SynthSeg, master: ``brain_generator.py`` (arguments), ``labels_to_image_model.py`` (``gamma_std``),
    ``model_inputs.py`` (means, deviations, background) and ``ext/lab2im/layers.py`` (``SampleResolution``, blur)."""
    made = SyntheticContrast()
    assert (made.mean, made.std) == ((25, 225), (5, 25))  # prior_means, prior_stds
    assert (made.black, made.dark) == (0.05, 0.25)  # random_coef > 0.95, else > 0.7
    assert (made.bias, made.bias_knots) == (0.7, 0.025)  # bias_field_std, bias_scale
    assert made.gamma == 0.5  # gamma_std
    assert (made.thick, made.thick_slices) == (4, 8)  # max_res_iso, max_res_aniso
    assert (made.isotropic, made.sharp) == (0.1, 0.05)  # prob_iso, prob_min
    assert made.blur_jitter == 1.03  # blur_range
    # What the generator lacks is off.
    assert (made.noise, made.parts, made.known_share, made.strip, made.channels) == (0, 1, 0, 0, 1)
    assert (made.known, made.shared, len(made.outside)) == ([], [], 0)


def test_a_constant_image_becomes_0():
    assert (rescale(torch.full((2, 1, 3, 3), 7.0)) == 0).all()


@pytest.mark.parametrize(
    ("wrong", "word"),
    [({"mean": (5, 1)}, "mean"), ({"std": (-1, 1)}, "std"), ({"sharp": 2}, "sharp"), ({"parts": 0}, "parts"),
     ({"blur_jitter": 0.9}, "blur_jitter"),
     ({"black": 0.8, "dark": 0.8}, "black")],
)  # fmt: skip
def test_wrong_ranges_are_refused(wrong, word):
    with pytest.raises(ValueError, match=word):
        SyntheticContrast(**wrong)


def test_labels_it_cannot_draw_are_refused(labels):
    with pytest.raises(ValueError, match="label -1"):
        SyntheticContrast()(labels.to(torch.int16) - 1)
    with pytest.raises(ValueError, match="spacing"):
        SyntheticContrast(spacing=[1, 2])(labels)


@pytest.mark.parametrize("spacing", [0.7, 0.8, 1.2, 2.0, (0.9, 1.0, 3.3)])
def test_sharp_images_keep_their_grid_at_any_spacing(labels, spacing, monkeypatch):
    """What keeps its resolution is neither resampled nor blurred for thick slices, whatever its spacing rounds to."""
    paint = SyntheticContrast(**{**PLAIN, "sharp": 1.0, "spacing": spacing})
    widths = []
    monkeypatch.setattr(
        "common.transforms.synthetic_contrast.blur", lambda image, sigma: widths.append(sigma) or image
    )  # fmt: skip
    monkeypatch.setattr(
        "common.transforms.synthetic_contrast._nearest", lambda image, size: pytest.fail(f"resampled to {size}")
    )
    paint(labels)
    assert widths == [[0.5, 0.5, 0.5]] * len(labels)
