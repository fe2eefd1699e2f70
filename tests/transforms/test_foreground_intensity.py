"""Intensities by the foreground: of a synthetic head with noise in the air, a skull-stripped one, and a CT."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import CropForegroundd, ScaleIntensityRangePercentilesd

from common.foreground import above_air, foreground_mask
from common.transforms import NormalizeForegroundd, ScaleForegroundPercentilesd

KINDS = ("head", "brain", "ct")


def scan(kind: str, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """A ball of three tissues in air, (1, x, y, z), and where it is tissue."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, size)] * 3, indexing="ij"))
    radius = np.sqrt((grid**2).sum(0))
    levels = {"head": (0, 250, 600, 900), "brain": (0, 250, 600, 900), "ct": (-1000, -90, 40, 300)}[kind]
    image = np.select([radius < 0.3, radius < 0.5, radius < 0.7], levels[1:], levels[0])
    image = image + rng.normal(size=image.shape) * {"head": 20, "brain": 20, "ct": 12}[kind]
    inside = radius < 0.7
    if kind == "head":  # magnitudes, whose noise in the air is never below 0
        image = abs(image + 1j * rng.normal(size=image.shape) * 20)
    if kind == "brain":
        image = np.where(inside, image, 0)
    return torch.tensor(image, dtype=torch.float32)[None], torch.tensor(inside)[None]


def more_air(image: torch.Tensor, kind: str, voxels: int = 8) -> torch.Tensor:
    """The same scan with a wider field of view: more of its air, or of what scanners fill with."""
    rng = np.random.default_rng(1)
    wide = torch.full((1, *(side + 2 * voxels for side in image.shape[1:])), -3024.0 if kind == "ct" else 0.0)
    if kind == "head":
        wide += torch.tensor(np.hypot(*rng.normal(size=(2, *wide.shape)) * 20), dtype=torch.float32)
    middle = slice(voxels, -voxels)
    wide[:, middle, middle, middle] = image
    return wide


def middle(image: torch.Tensor, voxels: int = 8) -> torch.Tensor:
    return image[:, voxels:-voxels, voxels:-voxels, voxels:-voxels]


TRANSFORMS = {
    "scale": ScaleForegroundPercentilesd("image", lower=5, upper=95, b_min=-1, b_max=1),
    "normalise": NormalizeForegroundd("image", lower=0.5, upper=99.5),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_more_air_leaves_tissue_as_it_is(kind, transform):
    image, inside = scan(kind)
    before = transform({"image": image})["image"]
    after = middle(transform({"image": more_air(image, kind)})["image"])
    difference = (after - before)[inside].abs().max()
    assert difference <= (0.05 if kind == "head" else 0)  # some noise is above a tenth of the signal
    monai = ScaleIntensityRangePercentilesd("image", lower=5, upper=95, b_min=-1, b_max=1, clip=True)
    theirs = middle(monai({"image": more_air(image, kind)})["image"]) - monai({"image": image})["image"]
    assert theirs[inside].abs().max() > 0.3  # of the whole volume


@pytest.mark.parametrize("kind", KINDS)
def test_the_foreground_is_tissue(kind):
    image, inside = scan(kind)
    for volume, truth in ((image, inside), (more_air(image, kind), None)):
        found = foreground_mask(volume[0])[None]
        found = found if truth is not None else middle(found)
        assert (found & inside).sum() >= 0.999 * inside.sum() and (found & ~inside).sum() <= 0.02 * inside.sum()


@pytest.mark.parametrize("kind", ["head", "brain"])
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_a_factor_changes_nothing(kind, transform):
    image, _ = scan(kind)
    expected = transform({"image": image})["image"]
    for factor in (1e-3, 7.3, 1e4):
        torch.testing.assert_close(transform({"image": image * factor})["image"], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_against_numpy(kind):
    """Two channels of other contrast, and what lies beyond the range."""
    image, inside = scan(kind)
    other = image * 0.5 if kind == "ct" else image.max() - image * 0.9
    image = torch.cat((image, torch.where(inside, other, image[:, :1, :1, :1])))
    values = image.double().numpy()
    masks = [foreground_mask(channel).numpy() for channel in image]
    for clip in (True, False):
        made = ScaleForegroundPercentilesd("image", lower=2, upper=98, b_min=-1, b_max=3, clip=clip)({"image": image})
        for channel, value, mask in zip(made["image"], values, masks, strict=True):
            ordered = np.sort(value[mask])
            low, high = (np.interp(q * (len(ordered) - 1), range(len(ordered)), ordered) for q in (0.02, 0.98))
            expected = (value - low) / (high - low) * 4 - 1
            np.testing.assert_allclose(channel, expected.clip(-1, 3) if clip else expected, atol=2e-4, rtol=1e-4)
    made = NormalizeForegroundd("image", lower=2, upper=98)({"image": image})["image"]
    for channel, value, mask in zip(made, values, masks, strict=True):
        clipped = value.clip(*np.percentile(value[mask], [2, 98]))
        np.testing.assert_allclose(channel, (clipped - clipped[mask].mean()) / clipped[mask].std(), atol=1e-4)
        assert channel.min() == channel[~mask].max() or kind == "head"  # air is the least, for padding to take


def test_all_is_the_rule_of_the_whole_volume():
    image, _ = scan("head")
    made = ScaleForegroundPercentilesd("image", lower=1, upper=99, foreground="all")({"image": image})["image"]
    expected = ScaleIntensityRangePercentilesd("image", lower=1, upper=99, b_min=0, b_max=1, clip=True)(
        {"image": image}
    )
    torch.testing.assert_close(made, torch.as_tensor(expected["image"]))
    made = NormalizeForegroundd("image", foreground="all")({"image": image})["image"]
    torch.testing.assert_close(made, (image - image.mean()) / image.std(correction=0), atol=1e-5, rtol=1e-5)


def test_other_rules():
    image = torch.tensor([-5.0, 0, 0, 1, 2, 3])
    assert foreground_mask(image, "nonzero").tolist() == [True, False, False, True, True, True]
    assert foreground_mask(image, 1.5).tolist() == [False] * 4 + [True] * 2
    assert foreground_mask(image, "tissue").tolist() == [False] + [True] * 5  # signal above the least value
    rippled = torch.cat((torch.tensor([-3.0, -1]), torch.zeros(50), torch.tensor([1.0, 500, 600])))
    assert foreground_mask(rippled).tolist() == [False] * 53 + [True] * 2  # what resampling leaves around 0
    assert foreground_mask(-image[1:].abs() - 1).tolist() == [True, True, True, True, False]


def test_one_bright_voxel_hides_no_tissue():
    image, inside = scan("head")
    image[0, 16, 16, 16] = 1e6
    assert (foreground_mask(image[0])[None] & inside).sum() >= 0.999 * inside.sum()


def test_more_voxels_than_torch_sorts():
    """``torch.quantile`` takes 16 million at most."""
    image = torch.arange(17_000_000, dtype=torch.float32).remainder_(1000).view(1, 1000, 1000, 17)
    made = ScaleForegroundPercentilesd("image", lower=10, upper=90, foreground="all")({"image": image})["image"]
    assert made.min() == 0 and made.max() == 1 and float(made.mean()) == pytest.approx(0.5, abs=1e-3)


def test_metadata_and_types_are_kept():
    image, _ = scan("head")
    affine = torch.diag(torch.tensor([2.0, 2, 2, 1], dtype=torch.float64))
    for volume in (MetaTensor(image.short(), affine=affine), image.short(), image.short().numpy()):
        made = TRANSFORMS["scale"]({"image": volume, "other": 1})
        assert type(made["image"]) is type(volume) and made["other"] == 1
        assert str(made["image"].dtype).endswith("float32")
    assert torch.equal(TRANSFORMS["scale"]({"image": MetaTensor(image, affine=affine)})["image"].affine, affine)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu():
    image, _ = scan("head")
    for transform in TRANSFORMS.values():
        made = transform({"image": image.cuda()})["image"]
        assert made.is_cuda
        torch.testing.assert_close(made.cpu(), transform({"image": image})["image"], atol=1e-5, rtol=1e-5)


def test_images_that_cannot_be_scaled_are_refused_by_name():
    flat = torch.zeros(2, 4, 4, 4)
    flat[0, :2] = torch.arange(32.0).view(2, 4, 4) + 1
    image = MetaTensor(flat, meta={"filename_or_obj": "scan.nii.gz"})
    for transform in TRANSFORMS.values():
        with pytest.raises(ValueError, match=r"scan.nii.gz \(channel 1\) has no foreground \('tissue'\)"):
            transform({"image": image})
    image[1, :2] = 7
    with pytest.raises(ValueError, match=r"foreground of scan.nii.gz \(channel 1\) are both 7"):
        TRANSFORMS["scale"]({"image": image})
    with pytest.raises(ValueError, match=r"foreground of scan.nii.gz \(channel 1\) has only the intensity 7"):
        TRANSFORMS["normalise"]({"image": image})


def test_arguments_are_checked():
    for lower, upper in ((95, 5), (-1, 5), (5, 101), (None, 5)):
        with pytest.raises(ValueError, match="percentiles must be"):
            ScaleForegroundPercentilesd("image", lower, upper)
    with pytest.raises(ValueError, match="percentiles must be"):
        NormalizeForegroundd("image", lower=1)
    with pytest.raises(ValueError, match="foreground is one of tissue, nonzero, all"):
        NormalizeForegroundd("image", foreground="brain")


def standardised_head(kind):
    """Tissue of three kinds around a bright core, the outer one darker than the mean; and where it lies."""
    grid = np.stack(np.meshgrid(*[np.arange(24)] * 3, indexing="ij")) - 11.5
    radius = np.sqrt((grid**2).sum(0))
    image = np.where(radius < 6, 300.0, np.where(radius < 10, 60.0, 0.0))
    if kind == "standardised":
        inside = image[image > 0]
        image = np.where(image > 0, (image - inside.mean()) / inside.std(), -3.0)
    if kind == "ct":
        image = np.where(radius < 6, 40.0, np.where(radius < 10, -100.0, -1000.0))
    if kind == "lung":
        image = np.where(radius < 6, -400.0, np.where(radius < 10, -700.0, -1000.0))
    return torch.from_numpy(image).float()[None], radius < 10


@pytest.mark.parametrize("kind", ["plain", "standardised", "ct", "lung"])
def test_a_crop_keeps_all_tissue(kind):
    """MONAI's rule, above 0, would cut off what is darker than the mean, or than water."""
    image, tissue = standardised_head(kind)
    assert np.array_equal(above_air(image)[0].numpy(), tissue)
    crop = CropForegroundd("image", source_key="image", select_fn=above_air, allow_smaller=True)
    wide = int(tissue.any((1, 2)).sum())
    assert crop({"image": image})["image"].shape == (1, wide, wide, wide)


def test_each_channel_has_its_own_air():
    image = torch.cat([standardised_head("plain")[0], standardised_head("standardised")[0]])
    assert torch.equal(above_air(image)[0], above_air(image)[1])
    noisy = torch.randn(1, 8, 8, 8) * 0.01 + torch.tensor([0.0, 1.0]).repeat(4)  # a little below 0 is air
    assert torch.equal(above_air(noisy), noisy > 0)
