"""Finer labels for the sample's subjects, in FreeSurfer's numbers, to draw synthetic images from.

The borders between tissues are those of the subject. The structure of a voxel within a tissue follows from its place in
the template, by ellipsoids, planes and distances. This is accurate enough to draw images and to pre-train, but not to
score against.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["ANATOMY", "brain_anatomy", "ellipsoid_distance", "head_anatomy", "stem_axis", "tentorium"]

ANATOMY = {
    0: "background",
    2: "Left-Cerebral-White-Matter",
    3: "Left-Cerebral-Cortex",
    4: "Left-Lateral-Ventricle",
    5: "Left-Inf-Lat-Vent",
    7: "Left-Cerebellum-White-Matter",
    8: "Left-Cerebellum-Cortex",
    10: "Left-Thalamus",
    11: "Left-Caudate",
    12: "Left-Putamen",
    13: "Left-Pallidum",
    14: "3rd-Ventricle",
    15: "4th-Ventricle",
    16: "Brain-Stem",
    17: "Left-Hippocampus",
    18: "Left-Amygdala",
    24: "CSF",
    26: "Left-Accumbens",
    28: "Left-Ventral-DC",
    41: "Right-Cerebral-White-Matter",
    42: "Right-Cerebral-Cortex",
    43: "Right-Lateral-Ventricle",
    44: "Right-Inf-Lat-Vent",
    46: "Right-Cerebellum-White-Matter",
    47: "Right-Cerebellum-Cortex",
    49: "Right-Thalamus",
    50: "Right-Caudate",
    51: "Right-Putamen",
    52: "Right-Pallidum",
    53: "Right-Hippocampus",
    54: "Right-Amygdala",
    58: "Right-Accumbens",
    60: "Right-Ventral-DC",
    165: "Skull",
    258: "Head-ExtraCerebral",
}

_RIGHT = {2: 41, 3: 42, 4: 43, 5: 44, 7: 46, 8: 47, 10: 49, 11: 50, 12: 51, 13: 52, 17: 53, 18: 54, 26: 58, 28: 60}
_DEEP = {
    "thalamus": 10,
    "caudate": 11,
    "putamen": 12,
    "pallidum": 13,
    "accumbens": 26,
    "hippocampus": 17,
    "amygdala": 18,
}
_BONE = 6.5  # mm, the thickness of the skull


def brain_anatomy(
    labels: np.ndarray,
    coordinates: np.ndarray,
    ventricle_distance: np.ndarray,
    ellipsoids: Mapping[str, tuple],
    stem_half_width: float = 17.0,
) -> np.ndarray:
    """Labels of the brain's structures, uint16.

    Args:
        labels: tissue of each voxel: 1 cortex, 2 other grey matter, 3 white matter, 4 CSF, 0 outside of the brain.
        coordinates: place of each voxel in the template (3, *shape) in mm, x to the right, y forward, z up.
        ventricle_distance: mm to the border of the lateral and third ventricles, negative inside.
        ellipsoids: deep grey matter of the right side by name: centre, radii, turn about the vertical (see ``sample``).
        stem_half_width: mm from the axis of the brain stem to its side.
    """
    x, y, z = coordinates
    side, made = abs(x), np.zeros(labels.shape, np.uint16)
    cerebellum = (z < tentorium(x, y)) & (y < -32)
    stem = (np.hypot(x, y - stem_axis(z)) < stem_half_width) & (z < -6)

    made[labels == 1] = 3
    grey = labels == 2
    numbers = np.array([_DEEP[name.split()[0]] for name in ellipsoids], np.uint16)
    points = (side[grey], y[grey], z[grey])
    distances = np.stack([ellipsoid_distance(points, *ellipsoid) for ellipsoid in ellipsoids.values()])
    nearest = distances.argmin(0)
    made[grey] = np.where(distances.min(0) < 5, numbers[nearest], 28)
    made[grey & cerebellum] = 8

    white = labels == 3
    made[white] = 2
    diencephalon = ((side - 9) / 9) ** 2 + ((y + 14) / 12) ** 2 + ((z + 9) / 7) ** 2 < 1
    made[white & diencephalon] = 28
    made[white & cerebellum] = 7
    made[white & stem & ~diencephalon] = 16

    csf = labels == 4
    made[csf] = 24
    inner = csf & (ventricle_distance < 1.5)
    made[inner] = 4
    made[inner & (side < 4) & (y > -28) & (y < 4) & (z > -12) & (z < 12)] = 14
    made[csf & (side > 18) & (z < -3) & (z > -24) & (y < -4) & (y > -36)] = 5
    made[csf & (side < 12) & (z < -18) & (z > -46) & (y < -32) & (y > -52)] = 15

    for left, right in _RIGHT.items():
        made[(made == left) & (x > 0)] = right
    return made


def head_anatomy(brain: np.ndarray, skull_distance: np.ndarray, skin_distance: np.ndarray) -> np.ndarray:
    """Labels of the whole head, uint16: the brain and its surroundings.

    Args:
        brain: labels of the brain's structures on the head's grid, 0 elsewhere.
        skull_distance: mm outside the inner table of the skull, negative inside.
        skin_distance: mm outside the skin, negative inside.
    """
    made = np.where(skin_distance < 0, np.uint16(258), np.uint16(0))
    made[(skull_distance < _BONE) & (skin_distance < -2)] = 165
    made[skull_distance < 0] = 24
    made[brain > 0] = brain[brain > 0]
    return made


def ellipsoid_distance(grid: tuple, centre: Any, radii: Any, yaw: float = 0.0) -> np.ndarray:
    """Approximate signed distance in mm to an ellipsoid turned about the vertical axis."""
    x, y, z = (g - c for g, c in zip(grid, centre, strict=True))
    c, s = math.cos(math.radians(yaw)), math.sin(math.radians(yaw))
    x, y = c * x - s * y, s * x + c * y
    inside = np.sqrt((x / radii[0]) ** 2 + (y / radii[1]) ** 2 + (z / radii[2]) ** 2)
    return ((inside - 1) * min(radii)).astype(np.float32)


def tentorium(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Height in mm of the cerebellum's roof: a tent with a midline ridge, sloping to the petrous bones in front."""
    height = 23 * np.exp(-((x / 20) ** 2) - ((y + 52) / 28) ** 2) + 4 * np.exp(-((x / 30) ** 2)) - 23
    return height - 0.7 * np.maximum(abs(x) + 1.2 * (y + 34) - 20, 0)


def stem_axis(z: np.ndarray) -> np.ndarray:
    """Front-to-back position in mm of the axis of brain stem and spinal cord at a height."""
    return np.where(z > -12, -24.0, -24.0 + (z + 12) * 0.28)
