"""Grids of the sample's images in mm, and smooth random fields on them."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage as ndi

# Field of view in mm (RAS). The brain's own box lies inside the head's, a whole number of 4 mm voxels from its corner,
# and is 80 x 96 x 80 voxels at 2 mm: a third less to compute on than the head's 96 x 112 x 96.
HEAD_CORNER, HEAD_EXTENT = np.array([-95.0, -123.0, -91.0]), np.array([192.0, 224.0, 192.0])
BRAIN_CORNER, BRAIN_EXTENT = np.array([-79.0, -111.0, -75.0]), np.array([160.0, 192.0, 160.0])
# The middle of the template's brain, about which heads are scaled and turned.
CENTRE = np.array([0.0, -17.0, 5.0])


def ramp(distance: np.ndarray, width: float) -> np.ndarray:
    """Partial volume: 1 where ``distance`` is well above zero, 0 well below, linear over ``width`` (mm) in between."""
    return np.clip(distance / width + 0.5, 0, 1)


def smooth_field(
    rng: np.random.Generator, corner: np.ndarray, shape: tuple, spacing: float, scale: float, components: int = 1
) -> np.ndarray:
    """Gaussian random field of unit variance that varies over ``scale`` mm: cubic B-splines on a coarse lattice.

    The lattice is fixed to the head's field of view, so one generator gives the same field at any spacing. Returns
    shape (components, *shape).
    """
    knots = [math.ceil(extent / scale) + 4 for extent in HEAD_EXTENT]
    field = rng.standard_normal((components, *knots), dtype=np.float32)
    for axis, (count, size) in enumerate(zip(knots, shape, strict=True)):
        position = (corner[axis] - HEAD_CORNER[axis] + spacing * np.arange(size)) / scale
        cell = np.floor(position).astype(int)
        t = (position - cell)[:, None]
        taps = np.hstack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6
        weights = np.zeros((size, count), np.float32)
        for tap in range(4):
            weights[np.arange(size), cell + tap] = taps[:, tap]
        field = np.moveaxis(np.tensordot(weights, field, (1, axis + 1)), 0, axis + 1)
    # A B-spline averages the lattice's noise: the mean squared weight is 151 / 315 along each axis.
    return np.ascontiguousarray(field) * np.float32((315 / 151) ** 1.5)


def interpolate(volume: np.ndarray, index: np.ndarray, mode: str = "nearest") -> np.ndarray:
    return ndi.map_coordinates(volume, index, order=1, mode=mode, output=np.float32)


def check_spacing(spacing: float) -> None:
    if spacing <= 0 or spacing > 4 or abs(4 / spacing - round(4 / spacing)) > 1e-6:
        raise ValueError(f"spacing must divide 4 mm (1, 2 and 4 do), got {spacing}.")


def world_grid(corner: np.ndarray, extent: np.ndarray, spacing: float) -> tuple:
    axes = [c + spacing * np.arange(round(e / spacing)) for c, e in zip(corner, extent, strict=True)]
    return tuple(np.meshgrid(*(a.astype(np.float32) for a in axes), indexing="ij", sparse=True))
