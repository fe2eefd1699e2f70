from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from monai.networks.layers import separable_filtering
from torch.nn import functional as F

from ..interpolation import LINEAR
from .random_deformation import smooth_noise
from .ranges import check_range, spacing_per_axis

__all__ = ["SyntheticContrast"]


class SyntheticContrast:
    """Images of random contrast, resolution and quality from label maps, for a batch on its device, one per sample.

    This is the generator of SynthSeg (Billot et al., Medical Image Analysis 2023, sections 3.1.2 to 3.1.4), in its
    order: a Gaussian for each label, a bias field, rescaling to 0..1 and a gamma curve. Then follows the acquisition:
    blur for the slice thickness, sampling at a lower resolution, noise, and interpolation back. The defaults are those
    of the published generator; additions are off by default or marked below. Random numbers come from torch's global
    generator of the device.

    Args:
        mean: range of the mean intensity of a label.
        std: range of the standard deviation within a label.
        known: means of labels in a known contrast, such as T1: pairs of a list of labels and a range. Other labels keep
            ``mean``.
        known_share: probability that an image has the known contrast; each mean is then drawn from the range of its
            label.
        shared: groups of labels that share one Gaussian, such as the left and the right hippocampus.
        parts: each label of a sample is cut along smooth random surfaces into 1 to this many parts, each with its own
            mean. The image then has borders that its labels lack (after Anatomix: Dey et al., ICLR 2025). 1 cuts
            nothing, like SynthSeg.
        outside: labels around the organ, such as skull and scalp.
        strip: probability that the labels of ``outside`` are drawn as label 0, as after skull stripping.
        black, dark: probability that label 0 is exactly 0, and that it is dark (mean up to 15, deviation up to 5);
            otherwise it is treated like other labels.
        bias: the standard deviation of the log of the bias field is drawn between 0 and this.
        bias_knots: knots of the bias field's lattice for each voxel along an axis.
        gamma: standard deviation of the log of the exponent.
        spacing: voxel size of the label maps in mm, a number or one per axis.
        thick: largest voxel size in mm of an acquisition that is equally coarse along all axes.
        thick_slices: largest voxel size in mm of an acquisition that is coarse along one axis.
        isotropic: probability that an acquisition is coarse along all axes, not just one.
        sharp: probability that the resolution stays that of the map.
        blur_jitter: each width of the blur is multiplied by a factor between the inverse of this and this.
        noise: the standard deviation of noise at the resolution of the acquisition is drawn between 0 and this, for
            intensities in 0..1. SynthSeg has none.
        channels: number of contrasts of an image, each drawn on its own, with a resolution of its own.

    ``paint(labels (B, 1, *spatial))`` returns images (B, channels, *spatial) in float32, in 0..1.

    Raises:
        ValueError: an argument is out of its range; when called, a label is negative.
    """

    def __init__(
        self,
        mean: Sequence[float] = (25.0, 225.0),
        std: Sequence[float] = (5.0, 25.0),
        known: Sequence[tuple[Sequence[int], Sequence[float]]] = (),
        known_share: float = 0.0,
        shared: Sequence[Sequence[int]] = (),
        parts: int = 1,
        outside: Sequence[int] = (),
        strip: float = 0.0,
        black: float = 0.05,
        dark: float = 0.25,
        bias: float = 0.7,
        bias_knots: float = 0.025,
        gamma: float = 0.5,
        spacing: float | Sequence[float] = 1.0,
        thick: float = 4.0,
        thick_slices: float = 8.0,
        isotropic: float = 0.1,
        sharp: float = 0.05,
        blur_jitter: float = 1.03,
        noise: float = 0.0,
        channels: int = 1,
    ) -> None:
        for name, pair in {"mean": mean, "std": std, **{f"known of {ids}": pair for ids, pair in known}}.items():
            check_range(name, pair)
        for name, share in {
            "isotropic": isotropic,
            "sharp": sharp,
            "strip": strip,
            "known_share": known_share,
            "black + dark": black + dark,
        }.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must be a probability between 0 and 1, not {share}.")
        if parts < 1 or channels < 1:
            raise ValueError(f"parts and channels must be 1 or more, not {parts} and {channels}.")
        if not blur_jitter >= 1:
            raise ValueError(f"blur_jitter is the largest factor of the blur and must be 1 or more, not {blur_jitter}.")
        self.mean, self.std, self.parts, self.channels = tuple(mean), tuple(std), parts, channels
        self.known, self.known_share = [(list(ids), tuple(pair)) for ids, pair in known], known_share
        self.shared = [sorted(group) for group in shared]
        self.outside, self.strip = torch.as_tensor(list(outside), dtype=torch.long), strip
        self.black, self.dark, self.bias, self.bias_knots, self.gamma = black, dark, bias, bias_knots, gamma
        self.spacing, self.blur_jitter = spacing, blur_jitter
        self.thick, self.thick_slices, self.isotropic, self.sharp, self.noise = (
            thick,
            thick_slices,
            isotropic,
            sharp,
            noise,
        )

    def __call__(self, labels: torch.Tensor) -> torch.Tensor:
        axes = labels.ndim - 2
        spacing = spacing_per_axis(self.spacing, axes)
        image = self.draw_intensities(labels)
        if self.bias:
            knots = [math.ceil(n * self.bias_knots) for n in labels.shape[2:]]
            field = smooth_noise(len(image), self.channels, labels.shape[2:], knots, image.device)
            image = image * (field * self.bias * _draw(image)).exp()
        image = rescale(image.clamp(0, 300))
        if self.gamma:
            exponent = (self.gamma * torch.randn(*image.shape[:2], *[1] * axes, device=image.device)).exp()
            image = image.pow(exponent)
        each = image.flatten(0, 1)[:, None]  # channels are acquired one by one
        voxel, thickness = self.draw_resolution(len(each), spacing, image.device)
        least = 1 / self.blur_jitter
        jitter = least + (self.blur_jitter - least) * torch.rand(len(each), axes, device=image.device)
        drawn = zip(each, voxel.tolist(), thickness.tolist(), jitter.tolist(), strict=True)
        return torch.stack([self.acquire(one, v, t, spacing, j) for one, v, t, j in drawn]).view_as(image)

    def draw_intensities(self, labels: torch.Tensor) -> torch.Tensor:
        """Draw an image (B, channels, *spatial) with one Gaussian for each label."""
        index = labels.long()
        lowest, highest = (int(value) for value in index.aminmax())
        if lowest < 0:
            raise ValueError(f"A label map holds the label {lowest}: labels must be 0 or more to draw an image.")
        if len(self.outside):
            stripped = torch.rand(len(index), *[1] * (index.ndim - 1), device=index.device) < self.strip
            around = torch.isin(index, self.outside.to(index.device))
            index = index.masked_fill(stripped & around, 0)
        if self.shared:
            table = torch.arange(highest + 1)
            for group in self.shared:  # the others of a group are drawn as its first
                table[[label for label in group if label <= highest]] = group[0]
            index = table.to(index.device)[index]
        batch, count = len(index), highest + 1
        if self.parts > 1:
            index = index * self.parts + self.draw_parts(index, count)
            count *= self.parts
        shape = (batch, self.channels, count)
        low, high = self.draw_ranges(batch, highest + 1, index.device)
        mean = low + (high - low) * torch.rand(shape, device=index.device)
        std = self.std[0] + (self.std[1] - self.std[0]) * torch.rand(shape, device=index.device)
        chance = torch.rand(batch, self.channels, 1, device=index.device)
        black, dark = chance < self.black, (chance >= self.black) & (chance < self.black + self.dark)
        air = torch.arange(count, device=index.device) < self.parts
        mean = torch.where(air & dark, 15 * torch.rand_like(chance), mean).masked_fill(air & black, 0)
        std = torch.where(air & dark, 5 * torch.rand_like(chance), std).masked_fill(air & black, 0)
        flat = index.flatten(2).expand(-1, self.channels, -1)
        image = mean.gather(2, flat) + std.gather(2, flat) * torch.randn(flat.shape, device=index.device)
        return image.view(batch, self.channels, *labels.shape[2:])

    def draw_ranges(self, batch: int, count: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Least and largest mean intensity of each of ``count`` labels and their parts, each (B, channels, N)."""
        low = torch.full((count,), self.mean[0])
        high = torch.full((count,), self.mean[1])
        plain = torch.stack([low, high]).to(device)
        for ids, pair in self.known:
            low[[label for label in ids if label < count]] = pair[0]
            high[[label for label in ids if label < count]] = pair[1]
        ranges = plain.expand(batch, self.channels, 2, count)
        if self.known and self.known_share:
            chosen = torch.rand(batch, self.channels, 1, 1, device=device) < self.known_share
            ranges = torch.where(chosen, torch.stack([low, high]).to(device), ranges)
        ranges = ranges.repeat_interleave(self.parts, -1)
        return ranges[:, :, 0], ranges[:, :, 1]

    def draw_parts(self, index: torch.Tensor, count: int) -> torch.Tensor:
        """The part of its label, 0..parts - 1, that each voxel lies in, (B, 1, *spatial)."""
        size, device = index.shape[2:], index.device
        field = smooth_noise(len(index), 1, size, [math.ceil(n / 12) for n in size], device)
        # A Gaussian's distribution function makes the shares of the parts even; the shift differs between labels.
        share = torch.special.ndtr(field * 1.5) + torch.rand(len(index), 1, *[1] * len(size), device=device)
        number = torch.randint(1, self.parts + 1, (len(index), count), device=device)
        number = number.gather(1, index.flatten(1)).view_as(index)
        return ((share % 1) * number).long().clamp(max=self.parts - 1)

    def draw_resolution(
        self, batch: int, spacing: Sequence[float], device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Voxel size and slice thickness of ``batch`` acquisitions in mm, each (B, axes)."""
        axes = len(spacing)
        # In double precision: what keeps the map's own resolution is told by equality.
        own = torch.tensor(spacing, dtype=torch.float64, device=device).expand(batch, -1)

        def draw(largest: float) -> torch.Tensor:
            return own + (largest - own).clamp(min=0) * torch.rand(batch, axes, device=device)

        slices = F.one_hot(torch.randint(axes, (batch,), device=device), axes).bool()
        even = torch.rand(batch, 1, device=device) < self.isotropic
        voxel = torch.where(even, draw(self.thick), torch.where(slices, draw(self.thick_slices), own))
        voxel = torch.where(torch.rand(batch, 1, device=device) < self.sharp, own, voxel)
        return voxel, own + (voxel - own) * torch.rand(batch, axes, device=device)

    def acquire(
        self,
        image: torch.Tensor,
        voxel: Sequence[float],
        thickness: Sequence[float],
        spacing: Sequence[float],
        jitter: Sequence[float] | None = None,
    ) -> torch.Tensor:
        """Simulate another voxel size and slice thickness for one image (C, *spatial); its grid stays.

        Args:
            image: intensities in 0..1.
            voxel, thickness, spacing: voxel size and slice thickness of the acquisition and spacing of the image, mm.
            jitter: factor of the blur's width, one per axis; None leaves it as it is.
        """
        size = tuple(image.shape[1:])
        widths = [0.5 if t == s else 0.75 * t / s for t, s in zip(thickness, spacing, strict=True)]
        image = blur(image, [width * factor for width, factor in zip(widths, jitter or [1] * len(widths), strict=True)])
        coarse = [max(1, int(n * s / v + 1e-6)) for n, s, v in zip(size, spacing, voxel, strict=True)]
        if tuple(coarse) != size:
            image = _nearest(image, coarse)
        if self.noise:
            image = image + self.noise * torch.rand((), device=image.device) * torch.randn_like(image)
        if tuple(coarse) != size:
            image = F.interpolate(image[None], size, mode=LINEAR[len(size)])[0]
        return image.clamp(0, 1)


def rescale(image: torch.Tensor) -> torch.Tensor:
    """Rescale each channel of (B, C, *spatial) to 0..1 by its least and largest value; a constant one becomes 0."""
    flat = image.flatten(2)
    low, high = flat.amin(2), flat.amax(2)
    shape = (*low.shape, *[1] * (image.ndim - 2))
    return (image - low.view(shape)) / (high - low).clamp(min=1e-6).view(shape)


def blur(image: torch.Tensor, sigma: Sequence[float]) -> torch.Tensor:
    """Gaussian blur of (C, *spatial), ``sigma`` in voxels, one per axis; borders are continued."""
    kernels = []
    for size, width in zip(image.shape[1:], sigma, strict=True):
        # An axis without width, or with a single voxel, is not blurred.
        radius = max(1, math.ceil(2.5 * width)) if width > 0 and size > 1 else 0
        taps = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype)
        kernel = torch.exp(-taps.square() / (2 * width**2)) if radius else torch.ones_like(taps)
        kernels.append(kernel / kernel.sum())
    return separable_filtering(image[None], kernels, mode="replicate")[0]


def _nearest(image: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return F.interpolate(image[None], tuple(size), mode="nearest-exact")[0]


def _draw(image: torch.Tensor) -> torch.Tensor:
    """A number between 0 and 1 for each channel of each sample, (B, C, 1, ...)."""
    return torch.rand(*image.shape[:2], *[1] * (image.ndim - 2), device=image.device)
