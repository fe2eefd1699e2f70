from __future__ import annotations

import math

import torch

__all__ = ["RandomTexture", "gibbs_noise"]


class RandomTexture:
    """Noise, Gibbs ringing, scaling and shifting of intensities, for a batch on its device, each sample on its own.

    It applies MONAI's ``RandGaussianNoise``, ``RandGibbsNoise``, ``RandScaleIntensity`` and ``RandShiftIntensity`` in
    this order, but to a batch. The defaults are those of Hu et al., SimTROT (section 3.2; numbers from the published
    code), for intensities in 0..1. Random numbers come from torch's global generator of the device. No call waits for
    the device.

    Args:
        noise_prob: probability of Gaussian noise.
        noise_std: its standard deviation is drawn between 0 and this.
        gibbs_prob: probability of Gibbs ringing; its strength is drawn between 0 and 1.
        scale_prob, scale: probability of ``image * (1 + f)``, f drawn between ``-scale`` and ``scale``.
        shift_prob, shift: probability of ``image + f``, f drawn between ``-shift`` and ``shift``.

    ``texture(image (B, C, *spatial))`` returns a new tensor of the same shape.
    """

    def __init__(
        self,
        noise_prob: float = 0.5,
        noise_std: float = 0.1,
        gibbs_prob: float = 0.5,
        scale_prob: float = 0.1,
        scale: float = 0.1,
        shift_prob: float = 0.1,
        shift: float = 0.1,
    ) -> None:
        self.noise_prob, self.noise_std, self.gibbs_prob = noise_prob, noise_std, gibbs_prob
        self.scale_prob, self.scale, self.shift_prob, self.shift = scale_prob, scale, shift_prob, shift

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        def draw(probability: float, low: float, high: float) -> torch.Tensor:
            shape = (len(image),) + (1,) * (image.ndim - 1)
            chosen, value = torch.rand(2, *shape, device=image.device)
            return torch.where(chosen < probability, low + (high - low) * value, 0.0)

        image = image + torch.randn_like(image) * draw(self.noise_prob, 0, self.noise_std)
        if self.gibbs_prob:
            image = gibbs_noise(image, draw(self.gibbs_prob, 0, 1).flatten())
        image = image * (1 + draw(self.scale_prob, -self.scale, self.scale))
        return image + draw(self.shift_prob, -self.shift, self.shift)


def gibbs_noise(image: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Remove the spatial frequencies outside of a ball; its radius shrinks with ``alpha``.

    For ``alpha`` above 0 it equals ``monai.transforms.GibbsNoise`` on each image.

    Args:
        image: batch (B, C, *spatial).
        alpha: strength for each sample (B,), 0 (the identity) to 1.
    """
    spatial = image.shape[2:]
    axes = tuple(range(2, image.ndim))
    radius = (1 - alpha) * max(spatial) * math.sqrt(2) / 2
    distance = torch.zeros((), device=image.device)
    for axis, size in enumerate(spatial):
        # Frequencies lie around the middle there; shifting the one mask is cheaper than shifting every spectrum.
        place = torch.arange(size, device=image.device) - (size - 1) / 2
        place = torch.fft.ifftshift(place)
        distance = distance + place.square().view([-1 if a == axis else 1 for a in range(len(spatial))])
    inside = distance.sqrt() <= radius.view(-1, *(1,) * len(spatial))
    # The ball is centred between two frequencies, so it is not symmetric and the result is complex: MONAI takes its
    # real part, and so does this. In float32 because half-precision transforms need sizes that are powers of two.
    spectrum = torch.fft.fftn(image.float(), dim=axes) * inside[:, None]
    filtered = torch.fft.ifftn(spectrum, dim=axes).real
    keep = (alpha > 0).view(-1, *(1,) * (image.ndim - 1))
    return torch.where(keep, filtered.to(image.dtype), image)
