"""How the sites' scanners change a signal."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage as ndi

from .grid import CENTRE, smooth_field, world_grid


class Site(NamedTuple):
    """How one scanner turns tissue into intensity. Pairs are ranges; each subject's value is drawn from them."""

    csf: float
    grey: float
    white: float
    fat: float
    marrow: float
    spread: float  # standard deviation of each subject's tissue values about the site's
    noise: tuple[float, float]
    bias: tuple[float, float]  # standard deviation of the log of the random part of the bias field
    centre: float  # log brightness of the middle against the rim: dielectric (positive) or surface coils (negative)
    blur: tuple[float, float, float]  # mm along x, y, z
    scale: tuple[float, float]  # stored intensity of unit signal


SITES = {
    "site_a": Site(0.20, 0.55, 0.86, 1.05, 0.55, 0.012, (0.018, 0.032), (0.04, 0.09), 0.16, (0.6,) * 3, (700, 900)),
    "site_b": Site(0.26, 0.58, 0.80, 1.3, 0.7, 0.015, (0.030, 0.045), (0.10, 0.18), -0.22, (0.7, 0.7, 1.3), (260, 420)),
}


def scan(
    rng: np.random.Generator, signal: np.ndarray, corner: np.ndarray, spacing: float, site: Site, noise: float
) -> np.ndarray:
    """Add the scanner's blur, bias field and Rician noise."""
    bias = rng.uniform(*site.bias) * smooth_field(rng, corner, signal.shape, spacing, 75)[0]
    world = world_grid(corner, spacing * np.array(signal.shape), spacing)
    radius = sum((w - np.float32(c)) ** 2 for w, c in zip(world, CENTRE, strict=True))
    bias += np.float32(site.centre) * (np.exp(-radius / np.float32(2 * 60**2)) - np.float32(0.6))
    image = ndi.gaussian_filter(signal, [b / spacing for b in site.blur]) * np.exp(bias)
    real, imaginary = noise * rng.standard_normal((2, *signal.shape), dtype=np.float32)
    return np.hypot(image + real, imaginary)
