"""A small cohort of synthetic brain MRI with labels, ages and diagnoses, made from the MNI152 template.

Every image starts from the MNI152 T1, grey- and white-matter maps that ``nilearn`` carries (ICBM 2009a nonlinear
symmetric; Fonov et al., "Unbiased average age-appropriate brain templates from birth to adulthood", NeuroImage 2009).
A subject is the template under its own smooth deformation, with atrophy that grows with age and with diagnosis; labels
are read off the same deformed tissue maps as the intensities, so they follow the anatomy exactly. The scans are no
substitute for real data: they let a pipeline be tried, taught and tested without a download.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import math
import os
import shutil
import time
import uuid
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from filelock import FileLock
from scipy import ndimage as ndi
from tqdm import tqdm

from ..files import STALE_ELSEWHERE_SECONDS, cache_folder
from .sample_anatomy import ANATOMY, brain_anatomy, ellipsoid_distance, head_anatomy, stem_axis, tentorium

logger = logging.getLogger(__name__)

# Raised whenever the same parameters give other bits, so that an older cached cohort is not mistaken for this one.
VERSION = 3

STRUCTURES = {0: "background", 1: "cortex", 2: "subcortical grey matter", 3: "white matter", 4: "CSF"}
LESIONS = {0: "background", 1: "oedema", 2: "non-enhancing core", 3: "enhancing rim"}
CONTRASTS = {0: "FLAIR", 1: "T1w", 2: "T1gd", 3: "T2w"}

# Field of view in mm (RAS). The brain's own box lies inside the head's, a whole number of 4 mm voxels from its corner,
# and is 80 x 96 x 80 voxels at 2 mm: a third less to compute on than the head's 96 x 112 x 96.
_HEAD_CORNER, _HEAD_EXTENT = np.array([-95.0, -123.0, -91.0]), np.array([192.0, 224.0, 192.0])
_BRAIN_CORNER, _BRAIN_EXTENT = np.array([-79.0, -111.0, -75.0]), np.array([160.0, 192.0, 160.0])
# The middle of the template's brain, about which heads are scaled and turned.
_CENTRE = np.array([0.0, -17.0, 5.0])

# Deep grey matter as ellipsoids of the right side: centre (MNI mm), radii (mm), yaw (degrees; negative turns the rear
# end outwards). Generous on purpose: the grey-matter map cuts them to shape.
_SUBCORTICAL = {
    "thalamus": ((10.5, -18.5, 7.5), (10, 15, 10), -25),
    "caudate head": ((11, 14, 4), (7.5, 10, 11), -12),
    "caudate body": ((14, 1, 16), (5.5, 11, 7), -12),
    "caudate tail": ((18, -15, 21), (5, 10, 5), -15),
    "putamen": ((26, 3, 0), (7, 18, 11.5), -20),
    "pallidum": ((19.5, -4, -1), (6.5, 10, 7), -28),
    "accumbens": ((9.5, 11, -7), (6, 6, 5), 0),
    "hippocampus head": ((24, -13, -20), (8, 8, 6.5), 0),
    "hippocampus body": ((29, -23, -14), (6.5, 9.5, 6.5), 0),
    "hippocampus tail": ((26, -34, -5), (6.5, 7.5, 6.5), 30),
    "amygdala": ((22.5, -4, -19), (8, 7.5, 7.5), 0),
}


class _Site(NamedTuple):
    """How one scanner turns tissue into intensity. Pairs are the range a subject's value is drawn from."""

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


_SITES = {
    "site_a": _Site(0.20, 0.55, 0.86, 1.05, 0.55, 0.012, (0.018, 0.032), (0.04, 0.09), 0.16, (0.6,) * 3, (700, 900)),
    "site_b": _Site(
        0.26, 0.58, 0.80, 1.3, 0.7, 0.015, (0.030, 0.045), (0.10, 0.18), -0.22, (0.7, 0.7, 1.3), (260, 420)
    ),
}

# Signal of CSF, grey, white, oedema, non-enhancing core, enhancing rim in the lesion task's four contrasts.
_CONTRAST_SIGNAL = {
    "FLAIR": (0.12, 0.58, 0.47, 0.98, 0.42, 0.78),
    "T1w": (0.20, 0.55, 0.84, 0.56, 0.34, 0.54),
    "T1gd": (0.20, 0.56, 0.83, 0.56, 0.34, 1.18),
    "T2w": (1.10, 0.60, 0.42, 0.88, 0.98, 0.72),
}


class _Template(NamedTuple):
    """The template, once per process. Maps on the fine grid (1 mm), geometry on the coarse one (2 mm), one origin."""

    origin: np.ndarray
    grey: np.ndarray
    white: np.ndarray
    deep: np.ndarray  # share of the grey matter that is not the cerebral cortex's
    detail: np.ndarray  # what the tissue maps do not explain of the T1
    brain: np.ndarray
    ventricle_shift: np.ndarray  # (3, ...) unit push away from the ventricles
    hippocampus_shift: np.ndarray  # (3, ...) unit push away from the hippocampi
    surface_shift: np.ndarray  # (3, ...) unit push towards the skull
    temporal_horn: np.ndarray  # where hippocampal loss leaves CSF
    ventricle_distance: np.ndarray  # mm, negative inside
    skull_distance: np.ndarray  # mm outside the inner table of the skull, negative inside
    skin_distance: np.ndarray  # mm outside the skin, negative inside
    cord: np.ndarray  # mm from the middle of the spinal cord


def _signed_distance(mask: np.ndarray, voxel: float) -> np.ndarray:
    """Distance in mm to the border of a mask, negative inside."""
    outside, inside = ndi.distance_transform_edt(~mask), ndi.distance_transform_edt(mask)
    return (voxel * (outside - inside + np.where(mask, 0.5, -0.5))).astype(np.float32)


def _push(distance: np.ndarray, voxel: float, reach: float) -> np.ndarray:
    """Unit vectors away from a surface, fading with a Gaussian of width ``reach`` (mm): shape (3, ...)."""
    smooth = ndi.gaussian_filter(distance, 1.5 / voxel)
    direction = np.stack(np.gradient(smooth, voxel))
    direction /= np.maximum(np.sqrt((direction**2).sum(0)), 0.5)
    return (direction * np.exp(-((smooth / reach) ** 2))).astype(np.float32)


def _ramp(distance: np.ndarray, width: float) -> np.ndarray:
    """1 where ``distance`` is well above zero, 0 well below, linear over ``width`` (mm) between: partial volume."""
    return np.clip(distance / width + 0.5, 0, 1)


def _largest(mask: np.ndarray) -> np.ndarray:
    labels, _ = ndi.label(mask)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == sizes.argmax()


@lru_cache(maxsize=1)
def _template() -> _Template:
    """Read the template and work out, once, all that does not depend on the subject."""
    from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template

    loaders = (load_mni152_template, load_mni152_gm_template, load_mni152_wm_template)
    images = [loader(resolution=1) for loader in loaders]
    t1, grey, white = (np.asarray(image.dataobj, dtype=np.float32) for image in images)
    origin = images[0].affine[:3, 3].copy()

    def grid_at(voxel: int) -> tuple:
        axes = [np.arange(0, n, voxel, dtype=np.float32) + o for n, o in zip(t1.shape, origin, strict=True)]
        return tuple(np.meshgrid(*axes, indexing="ij", sparse=True))

    grid, coarse = grid_at(1), grid_at(2)
    x, y, z = grid
    # The opening drops the stump of the optic nerves, which the template leaves hanging under the frontal lobe.
    brain = _largest(ndi.binary_opening(t1 > 0, iterations=2))
    brain = ndi.binary_dilation(brain, iterations=2) & (t1 > 0)
    grey, white = grey * brain, white * brain
    csf = np.clip(brain - grey - white, 0, 1)

    lateral = _largest((csf > 0.5) & (abs(x) < 38) & (y > -58) & (y < 38) & (z > -14) & (z < 34) & (abs(x) > 0.5))
    lateral |= lateral[::-1]
    third = (csf > 0.5) & (abs(x) < 4) & (y > -28) & (y < 4) & (z > -12) & (z < 12)
    ventricles = lateral | third

    # Nothing deep lies outside this box (mm), so that the fine grid need not be searched whole.
    corners = ((-46, 46), (-68, 46), (-36, 46))
    near = tuple(slice(int(a - o), int(b - o)) for (a, b), o in zip(corners, origin, strict=True))
    beside = np.zeros(t1.shape, np.float32)
    beside[near] = np.clip((3.5 - _signed_distance(ventricles[near], 1)) / 2, 0, 1)
    deep = np.zeros(t1.shape, np.float32)
    deep_grid = (abs(x[near[0]]), y[:, near[1]], z[:, :, near[2]])
    distances = [ellipsoid_distance(deep_grid, *ellipsoid) for ellipsoid in _SUBCORTICAL.values()]
    deep[near] = _ramp(-np.minimum.reduce(distances), 2.0)

    # The maps call the pallidum and the outer thalamus half white, the brain stem half grey, and the partial volume
    # around the ventricles grey; put each where an anatomist would. `detail`, below, keeps the image as it was.
    moved = deep * np.clip((0.92 - white) / 0.25, 0, 1) * white
    grey, white = grey + moved, white - moved
    middle = stem_axis(z)
    stem = _ramp(17 - np.sqrt(x**2 + (y - middle) ** 2), 3) * _ramp(-6 - z, 6) * (1 - deep)
    moved = stem * grey
    grey, white = grey - moved, white + moved
    rim = beside * (1 - deep) * grey
    wetter = csf / np.maximum(csf + white, 1e-3)
    grey, white = grey - rim, white + rim * (1 - wetter)
    csf = np.clip(brain - grey - white, 0, 1)

    signal = [float(t1[tissue > 0.95].mean()) for tissue in (csf, grey, white)]
    detail = (t1 - sum(s * tissue for s, tissue in zip(signal, (csf, grey, white), strict=True))) * brain

    # By the rule of the label maps the cerebellum's grey matter is no cortex: what lies behind the brain stem and below
    # the tentorium.
    deep[(z < tentorium(x, y)) & (y < -32)] = 1

    # Averaging has worn the thin motor cortex off the vertex; a person has it, in the image as in the labels.
    margin = np.clip((0.92 - ndi.gaussian_filter(brain.astype(np.float32), 3, truncate=3)) / 0.2, 0, 1)
    moved = margin * _ramp(z - 10, 10) * white
    grey, white = grey + moved, white - moved

    # Head: a smooth hull around the brain, the spinal canal, and plain shapes for face and neck.
    half = np.s_[::2, ::2, ::2]
    closed = np.pad(brain[half], 8)
    closed = (ndi.distance_transform_edt(ndi.distance_transform_edt(~closed) < 7) > 6.2)[8:-8, 8:-8, 8:-8]
    hull = ndi.gaussian_filter(_signed_distance(closed, 2), 2)
    cx, cy, cz = coarse
    axis = middle[..., ::2]
    cord = np.sqrt(cx**2 + (cy - axis) ** 2).astype(np.float32) + np.zeros_like(hull)
    skull = np.minimum(hull, np.maximum(cord - 9, cz + 62))
    face = np.minimum(
        ellipsoid_distance(coarse, (0, 32, -62), (64, 60, 72)), ellipsoid_distance(coarse, (0, 90, -56), (13, 17, 22))
    )
    neck = np.maximum(np.sqrt((cx / 1.05) ** 2 + (cy + 30) ** 2) - 56, cz + 58)
    blocks = np.stack([hull - 13, face, neck])
    skin = -6 * np.log(np.exp(-np.clip(blocks, -60, 120) / 6).sum(0))

    mirrored = (abs(cx), cy, cz)
    hippocampus = np.minimum.reduce(
        [ellipsoid_distance(mirrored, *e) for n, e in _SUBCORTICAL.items() if "hippocampus" in n]
    )
    ventricle_distance = _signed_distance(ventricles[half], 2)
    # Hippocampal loss opens the temporal horn, above and outside the hippocampus.
    above = np.clip((hippocampus + 1) / 1.5, 0, 1) * np.clip((4 - hippocampus) / 2, 0, 1)
    horn = above * (abs(cx) > 25) * (cz > -22) * (cz < -4) * (cy < -6) * (cy > -32)
    return _Template(
        origin=origin,
        grey=grey,
        white=white,
        deep=deep,
        detail=detail.astype(np.float32),
        brain=brain.astype(np.float32),
        ventricle_shift=_push(ventricle_distance, 2, 16),
        hippocampus_shift=_push(hippocampus, 2, 7),
        surface_shift=_push(hull, 2, 28),
        temporal_horn=ndi.gaussian_filter(horn.astype(np.float32), 0.7),
        ventricle_distance=ventricle_distance,
        skull_distance=skull.astype(np.float32),
        skin_distance=skin.astype(np.float32),
        cord=cord,
    )


def _smooth_field(
    rng: np.random.Generator, corner: np.ndarray, shape: tuple, spacing: float, scale: float, components: int = 1
) -> np.ndarray:
    """Gaussian random field of unit variance that varies over ``scale`` mm: cubic B-splines on a coarse lattice.

    The lattice is fixed to the head's field of view, so that one generator gives one field, at any spacing.
    Returns shape (components, *shape).
    """
    knots = [math.ceil(extent / scale) + 4 for extent in _HEAD_EXTENT]
    field = rng.standard_normal((components, *knots), dtype=np.float32)
    for axis, (count, size) in enumerate(zip(knots, shape, strict=True)):
        position = (corner[axis] - _HEAD_CORNER[axis] + spacing * np.arange(size)) / scale
        cell = np.floor(position).astype(int)
        t = (position - cell)[:, None]
        taps = np.hstack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6
        weights = np.zeros((size, count), np.float32)
        for tap in range(4):
            weights[np.arange(size), cell + tap] = taps[:, tap]
        field = np.moveaxis(np.tensordot(weights, field, (1, axis + 1)), 0, axis + 1)
    # A B-spline averages the lattice's noise: the mean squared weight is 151 / 315 along each axis.
    return np.ascontiguousarray(field) * np.float32((315 / 151) ** 1.5)


def _look(volume: np.ndarray, index: np.ndarray, mode: str = "nearest") -> np.ndarray:
    return ndi.map_coordinates(volume, index, order=1, mode=mode, output=np.float32)


class _Tissues(NamedTuple):
    """Tissue shares of each voxel; outside the brain all is CSF."""

    csf: np.ndarray
    grey: np.ndarray
    white: np.ndarray
    deep: np.ndarray
    detail: np.ndarray
    brain: np.ndarray


def _traits(index: int, seed: int) -> dict[str, Any]:
    """Who the subject is. Sites alternate, diagnoses come in pairs, ages step round their range.

    So any four subjects in a row hold each site with each diagnosis, and any longer row covers the ages 20 to 85
    evenly: small splits are balanced whatever the seed. The step is a quarter of the golden ratio, which keeps the
    ages of each site and diagnosis, every fourth subject, evenly spread as well.
    """
    age = 20 + 65 * ((np.random.default_rng(seed).random() + index * (math.sqrt(5) + 1) / 8) % 1)
    return {
        "subject": f"sub-{index + 1:03d}",
        "age": round(float(age), 1),
        "diagnosis": index // 2 % 2,
        "domain": ("site_a", "site_b")[index % 2],
    }


def _check_spacing(spacing: float) -> None:
    if spacing <= 0 or spacing > 4 or abs(4 / spacing - round(4 / spacing)) > 1e-6:
        raise ValueError(f"spacing must divide 4 mm (1, 2 and 4 do), got {spacing}.")


def _grid(corner: np.ndarray, extent: np.ndarray, spacing: float) -> tuple:
    axes = [c + spacing * np.arange(round(e / spacing)) for c, e in zip(corner, extent, strict=True)]
    return tuple(np.meshgrid(*(a.astype(np.float32) for a in axes), indexing="ij", sparse=True))


def _head_coordinates(rng: np.random.Generator, spacing: float) -> np.ndarray:
    """Where each voxel of the head's grid lies in the template, in mm: shape (3, *shape)."""
    scale = np.clip(rng.normal(0.90, 0.02), 0.85, 0.93) * (1 + np.clip(rng.normal(0, 0.015, 3), -0.025, 0.025))
    tilt = np.clip(rng.normal(0, math.radians(3), 3), -math.radians(7), math.radians(7))
    # Down a little: the neck has room to spare below, the crown none above.
    shift = rng.uniform(-1.5, 1.5, 3) - np.array([0, 0, 2])
    (cx, cy, cz), (sx, sy, sz) = np.cos(tilt), np.sin(tilt)
    turn = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    turn = turn @ np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]]) @ np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    to_template = turn / scale[:, None]
    world = _grid(_HEAD_CORNER, _HEAD_EXTENT, spacing)
    shape = np.broadcast_shapes(*(w.shape for w in world))
    coordinates = 2.0 * _smooth_field(rng, _HEAD_CORNER, shape, spacing, 48, 3)
    for i in range(3):
        for j in range(3):
            coordinates[i] += np.float32(to_template[i, j]) * (world[j] - np.float32(_CENTRE[j] + shift[j]))
        coordinates[i] += np.float32(_CENTRE[i])
    return coordinates


def _atrophy(rng: np.random.Generator, age: float, diagnosis: int) -> dict[str, float]:
    """How far a subject's surfaces have moved, in mm (``sulci`` in log odds of CSF), from age, diagnosis and luck."""
    ageing = ((age - 20) / 65) ** 1.4 + rng.normal(0, 0.07)
    disease = diagnosis * (1 + rng.normal(0, 0.2)) * (0.6 + 0.4 * ageing)
    return {
        "ventricles": -1.0 + 3.6 * ageing + 1.6 * disease + rng.normal(0, 0.35),
        "hippocampus": -0.2 + 1.0 * ageing + 1.7 * disease + rng.normal(0, 0.2),
        "surface": 0.2 + 1.8 * ageing + 0.7 * disease + rng.normal(0, 0.15),
        "sulci": -0.5 + 1.9 * ageing + 0.7 * disease + rng.normal(0, 0.15),
        "white_lesions": max(0.0, 1.3 * ageing - 0.45 + rng.normal(0, 0.15)),
    }


def _deform_brain(
    rng: np.random.Generator, template: _Template, coordinates: np.ndarray, spacing: float, atrophy: dict[str, float]
) -> np.ndarray:
    """Add to the head's deformation what happens inside the skull: atrophy, and folds that differ between people."""
    index = (coordinates - template.origin[:, None, None, None].astype(np.float32)) / 2
    inner = 1.3 * _smooth_field(rng, _BRAIN_CORNER, coordinates.shape[1:], spacing, 18, 3)
    for axis in range(3):
        push = (
            np.float32(atrophy["surface"]) * template.surface_shift[axis]
            + np.float32(atrophy["hippocampus"]) * template.hippocampus_shift[axis]
            - np.float32(atrophy["ventricles"]) * template.ventricle_shift[axis]
        )
        inner[axis] += _look(push, index)
    return coordinates + inner


def _tissues(template: _Template, coordinates: np.ndarray, wetness: np.ndarray) -> _Tissues:
    """Tissue shares at template ``coordinates`` (3, ...) mm; ``wetness`` shifts the odds of CSF (log).

    The template is an average: the power gives its borders the sharpness of one person's.
    """
    index = coordinates - template.origin.astype(np.float32).reshape(3, *[1] * (coordinates.ndim - 1))
    grey, white, brain = (_look(m, index, "constant") for m in (template.grey, template.white, template.brain))
    csf = np.clip(1 - grey - white, 0, 1)
    powers = [np.power(share + np.float32(0.01), np.float32(1.6)) for share in (csf, grey, white)]
    powers[0] *= np.exp(wetness)
    total = powers[0] + powers[1] + powers[2]
    csf, grey, white = (p / total for p in powers)
    return _Tissues(
        csf,
        grey,
        white,
        _look(template.deep, index, "constant"),
        _look(template.detail, index, "constant"),
        brain > 0.5,
    )


def _structures(tissues: _Tissues) -> np.ndarray:
    """Labels 0 background, 1 cortex, 2 other grey, 3 white, 4 CSF: the largest share, inside the brain mask."""
    grey = np.where(tissues.deep > 0.5, np.uint8(2), np.uint8(1))
    labels = np.where(tissues.white > tissues.grey, np.uint8(3), grey)
    labels[tissues.csf > np.maximum(tissues.grey, tissues.white)] = 4
    labels[~tissues.brain] = 0
    return labels


def _signal(tissues: _Tissues, csf: float, grey: float, white: float, detail: float) -> np.ndarray:
    mixed = csf * tissues.csf + grey * tissues.grey + white * tissues.white
    # Where atrophy has put CSF there is no tissue left to show the template's detail.
    return mixed + np.float32(detail) * tissues.detail * (1 - 0.7 * tissues.csf)


def _head_signal(
    rng: np.random.Generator,
    template: _Template,
    coordinates: np.ndarray,
    spacing: float,
    site: _Site,
    inside: np.ndarray,
) -> np.ndarray:
    """Signal of the whole head; ``inside`` is that of everything within the skull."""
    index = (coordinates - template.origin[:, None, None, None].astype(np.float32)) / 2
    shape = inside.shape
    beyond = _look(template.skull_distance, index)
    bone_map, skin_map, marrow_map = _smooth_field(rng, _HEAD_CORNER, shape, spacing, 50, 3)
    streaks = _smooth_field(rng, _HEAD_CORNER, shape, spacing, 8)[0]
    fatness = rng.uniform(-1.5, 3.0)
    depth = -_look(template.skin_distance, index) + 1.2 * skin_map + np.float32(fatness)
    thickness = np.float32(rng.uniform(5.5, 7.5)) * np.exp(0.18 * bone_map)
    x, y, z = coordinates

    fat = np.clip(0.18 + 0.35 * streaks, 0, 0.8) * _ramp(-z - 25, 20)
    # Under the skin of the vault the fat reaches the skull; over the temples and the neck it covers muscle.
    muscle = np.maximum(_ramp(-12 - z, 12), _ramp(abs(x) - 52, 8) * _ramp(22 - z, 10) * _ramp(42 - y, 10))
    layer = 4.0 + 0.6 * fatness + 1.2 * skin_map
    fat = np.maximum(fat, _ramp(depth - 1.8, spacing) * np.maximum(_ramp(layer - depth, spacing), 1 - muscle))
    eyes = ellipsoid_distance((abs(x), y, z), (31, 62, -34), (13, 13, 13))
    fat = np.maximum(fat, _ramp(-ellipsoid_distance((abs(x), y, z), (28, 52, -34), (15, 20, 15)), 3))
    signal = 0.45 + (site.fat - 0.45) * fat
    signal += (0.16 - signal) * _ramp(-eyes, spacing)
    air = np.minimum(
        ellipsoid_distance((abs(x), y, z), (6, 62, -54), (5, 26, 18)),
        ellipsoid_distance((abs(x), y, z), (27, 52, -64), (11, 15, 14)),
    )
    air = np.minimum(air, ellipsoid_distance((x, y, z), (0, 18, -84), (10, 9, 40)))
    signal *= 1 - 0.93 * _ramp(-air + 1.5 * streaks, spacing)
    signal *= _ramp(depth, spacing)
    # Compact bone has no signal; the marrow between its tables does.
    marrow = _ramp(0.24 * thickness - abs(beyond - 0.52 * thickness), spacing) * np.exp(
        0.2 * marrow_map + 0.1 * streaks
    )
    bone = 0.05 + (site.marrow - 0.05) * np.clip(marrow, 0, 1.3)
    signal += (bone - signal) * _ramp(thickness - beyond, spacing) * _ramp(depth - 2, spacing)
    cord = _ramp(6 - _look(template.cord, index), spacing) * _ramp(-70 - z, spacing)
    inside = inside + (site.white * 0.9 - inside) * cord
    return signal + (inside - signal) * _ramp(-beyond, spacing)


def _scan(
    rng: np.random.Generator, signal: np.ndarray, corner: np.ndarray, spacing: float, site: _Site, noise: float
) -> np.ndarray:
    """Blur, bias field and Rician noise: what the scanner adds."""
    bias = rng.uniform(*site.bias) * _smooth_field(rng, corner, signal.shape, spacing, 75)[0]
    world = _grid(corner, spacing * np.array(signal.shape), spacing)
    radius = sum((w - np.float32(c)) ** 2 for w, c in zip(world, _CENTRE, strict=True))
    bias += np.float32(site.centre) * (np.exp(-radius / np.float32(2 * 60**2)) - np.float32(0.6))
    image = ndi.gaussian_filter(signal, [b / spacing for b in site.blur]) * np.exp(bias)
    real, imaginary = noise * rng.standard_normal((2, *signal.shape), dtype=np.float32)
    return np.hypot(image + real, imaginary)


def _lesion(
    rng: np.random.Generator,
    template: _Template,
    head: np.ndarray,
    coordinates: np.ndarray,
    wetness: np.ndarray,
    tissues: _Tissues,
    spacing: float,
    site: _Site,
) -> tuple[np.ndarray, np.ndarray]:
    """A tumour in four contrasts: image (*shape, 4) int16 and labels 1 oedema, 2 core, 3 enhancing rim."""
    shape, brain = tissues.csf.shape, tissues.brain
    world = _grid(_BRAIN_CORNER, _BRAIN_EXTENT, spacing)
    depth = spacing * ndi.distance_transform_edt(brain)
    # Cerebral white matter, above the brain stem and the cerebellum.
    seats = np.flatnonzero((depth > 16) & (tissues.white > 0.6) & (head[2] > -5) & (abs(head[0]) > 14))
    centre = np.unravel_index(seats[rng.integers(seats.size)], shape)
    offset = [w - w.ravel()[c] for w, c in zip(world, centre, strict=True)]
    radius = rng.uniform(9.0, 18.0)
    axes = np.exp(rng.normal(0, 0.14, 3))
    distance = np.sqrt(sum((o * np.float32(a)) ** 2 for o, a in zip(offset, axes, strict=True)))
    coarse, fine, rough = (_smooth_field(rng, _BRAIN_CORNER, shape, spacing, s)[0] for s in (22, 10, 6))
    edge = distance - radius * (1 + 0.20 * coarse + 0.18 * fine)

    # Mass effect: what surrounds the tumour is pushed away from it.
    near = edge < 30
    push = rng.uniform(0.25, 0.45) * radius * np.exp(-((np.maximum(edge, 0) / 13) ** 2)) / np.maximum(distance, 3)
    moved = coordinates.copy()
    for axis in range(3):
        moved[axis] -= push * offset[axis] * near
    around = _tissues(template, moved[:, near], wetness[near])
    tissues = _Tissues(*(whole.copy() for whole in tissues))
    for whole, part in zip(tissues, around, strict=True):
        whole[near] = part

    rim = radius * rng.uniform(0.15, 0.25) * np.exp(0.35 * rough)
    reach = rng.uniform(6.0, 16.0) * (0.25 + 0.75 * ndi.gaussian_filter(tissues.white, 3 / spacing)) + 2.5 * fine
    # Tumour replaces tissue and stops at CSF spaces; oedema follows white matter.
    solid = _ramp(0.6 - tissues.csf, 0.3) * brain
    tumour = _ramp(-edge, spacing) * solid
    core = _ramp(-edge - np.maximum(rim, 0.75 * spacing), spacing) * solid
    oedema = _ramp(reach - edge, 2 * spacing) * solid * np.clip(2.2 * tissues.white, 0.15, 1)
    oedema = np.where(oedema > tumour, oedema, 0) * (1 - tumour)
    labels = np.zeros(shape, np.uint8)
    labels[oedema > 0.5] = 1
    labels[tumour > 0.5] = 3
    labels[core > 0.5] = 2

    noise = rng.uniform(*site.noise)
    image = np.empty((*shape, len(CONTRASTS)), np.int16)
    for channel, name in CONTRASTS.items():
        csf, grey, white, *sick = _CONTRAST_SIGNAL[name]
        # White matter is brighter than grey in T1 only, so the template's T1 detail turns round in the others.
        signal = _signal(tissues, csf, grey, white, (white - grey) / 0.225)
        for share, value in zip((oedema, tumour, core), (sick[0], sick[2], sick[1]), strict=True):
            signal += (np.float32(value * rng.normal(1, 0.04)) * (1 + 0.06 * rough + 0.05 * fine) - signal) * share
        scanned = _scan(rng, signal, _BRAIN_CORNER, spacing, site, noise)
        image[..., channel] = np.rint(scanned * rng.uniform(*site.scale)).clip(0, 32767) * brain
    labels[~brain] = 0
    return image, labels


def make_subject(index: int, seed: int = 0, spacing: float = 2.0, lesion: bool = True) -> dict[str, Any]:
    """Make one subject: a pure function of its arguments.

    Subjects with an even ``index`` come from ``site_a`` (little noise, strong contrast, bright middle), those with an
    odd one from ``site_b`` (noise, weak contrast, bright rim, thick slices). Diagnosis 1 widens ventricles and sulci
    and shrinks the hippocampi beyond the subject's age.

    Args:
        index: number of the subject, from 0.
        seed: seed of the cohort.
        spacing: voxel size in mm. The same subject at another spacing has the same anatomy; must divide 4 mm.
        lesion: whether to make the lesion task too (half the time).

    Returns:
        ``subject``, ``age`` (years), ``diagnosis`` (0 or 1), ``domain``; ``head_affine`` with ``t1`` (int16),
        ``brain_mask`` (uint8) and ``anatomy`` (uint16, finer labels of the whole head by FreeSurfer's numbers, see
        ``sample_anatomy``) on the head's grid, 96 x 112 x 96 voxels at 2 mm; ``brain_affine`` with ``t1_brain``
        (int16), ``structures4`` (uint8), and where asked for ``lesion_image`` (int16, contrasts FLAIR, T1, T1 with
        contrast agent, T2 along the last axis) and ``lesion`` (uint8) on the brain's own, 80 x 96 x 80 at 2 mm.
        ``structures4`` covers the brain mask by the rule of the label maps: 1 cerebral cortex, 2 all other grey matter
        (the cerebellar cortex included), 3 white matter (with the brain stem), 4 CSF (ventricles, and sulci inside the
        mask).
        ``lesion``: 1 oedema, 2 non-enhancing core, 3 enhancing rim.

    Raises:
        ValueError: if ``spacing`` does not divide 4 mm.
    """
    _check_spacing(spacing)
    traits = _traits(index, seed)
    site = _SITES[traits["domain"]]
    streams = np.random.SeedSequence([seed, index]).spawn(4)
    anatomy, contents, scanner, tumour = (np.random.default_rng(stream) for stream in streams)
    template = _template()
    head = _head_coordinates(anatomy, spacing)
    start = np.rint((_BRAIN_CORNER - _HEAD_CORNER) / spacing).astype(int)
    size = np.rint(_BRAIN_EXTENT / spacing).astype(int)
    box = tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))

    atrophy = _atrophy(anatomy, traits["age"], traits["diagnosis"])
    inner_head = head[:, box[0], box[1], box[2]]
    coordinates = _deform_brain(anatomy, template, inner_head, spacing, atrophy)
    shape = coordinates.shape[1:]
    sulci, thickness, patches, fine = (
        _smooth_field(contents, _BRAIN_CORNER, shape, spacing, scale)[0] for scale in (14, 30, 10, 6)
    )
    index2 = (coordinates - template.origin[:, None, None, None].astype(np.float32)) / 2
    wetness = np.float32(atrophy["sulci"]) + 0.4 * sulci + 0.25 * thickness
    wetness += np.float32(2.0 * atrophy["hippocampus"]) * _look(template.temporal_horn, index2)
    tissues = _tissues(template, coordinates, wetness)
    labels = _structures(tissues)
    anatomy_map = np.zeros(head.shape[1:], np.uint16)
    anatomy_map[box] = brain_anatomy(labels, coordinates, _look(template.ventricle_distance, index2), _SUBCORTICAL)
    head_index = (head - template.origin[:, None, None, None].astype(np.float32)) / 2
    around = (_look(distance, head_index) for distance in (template.skull_distance, template.skin_distance))
    anatomy_map = head_anatomy(anatomy_map, *around)

    csf, grey, white = (value + contents.normal(0, site.spread) for value in (site.csf, site.grey, site.white))
    signal = _signal(tissues, csf, grey, white, (white - grey) / 0.225)
    # Ageing white matter goes patchy around the ventricles.
    worn = _ramp(
        3.0 + 5.0 * (atrophy["white_lesions"] - 0.5) + 2.5 * patches - _look(template.ventricle_distance, index2), 3
    )
    worn *= np.float32(min(1.0, 2 * atrophy["white_lesions"])) * tissues.white
    signal += (grey - white) * np.float32(0.8) * worn
    signal *= 1 + 0.012 * fine + 0.012 * patches
    inside = np.full(head.shape[1:], csf, np.float32)
    inside[box] = signal

    whole = _head_signal(contents, template, head, spacing, site, inside)
    scanned = _scan(scanner, whole, _HEAD_CORNER, spacing, site, scanner.uniform(*site.noise))
    t1 = np.rint(scanned * scanner.uniform(*site.scale)).clip(0, 32767).astype(np.int16)
    mask = np.zeros(t1.shape, np.uint8)
    mask[box] = tissues.brain
    result = {
        **traits,
        "head_affine": nib.affines.from_matvec(np.diag([spacing] * 3), _HEAD_CORNER),
        "brain_affine": nib.affines.from_matvec(np.diag([spacing] * 3), _BRAIN_CORNER),
        "t1": t1,
        "brain_mask": mask,
        "anatomy": anatomy_map,
        "t1_brain": t1[box] * tissues.brain,
        "structures4": labels,
    }
    if lesion:
        result["lesion_image"], result["lesion"] = _lesion(
            tumour, template, inner_head, coordinates, wetness, tissues, spacing, site
        )
    return result


def _splits(subjects: int, unlabelled: int) -> dict[str, list[int]]:
    """Indices of each split: a third to test, a sixth to validation, the rest to training; then the unlabelled."""
    test, validation = max(1, subjects // 3), max(1, subjects // 6)
    bounds = np.cumsum([0, subjects - test - validation, validation, test, unlabelled]).tolist()
    names = ("training", "validation", "test", "unlabelled")
    return {name: list(range(a, b)) for name, a, b in zip(names, bounds[:-1], bounds[1:], strict=True)}


def _save(array: np.ndarray, affine: np.ndarray, path: Path) -> None:
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    path.parent.mkdir(exist_ok=True)
    nib.save(image, path)


def _write_subject(subject: dict[str, Any], folder: Path, labelled: bool) -> None:
    kinds = {"t1_brain": "brain_affine", "anatomy": "head_affine"}
    if labelled:
        kinds |= {"t1": "head_affine", "brain_mask": "head_affine"}
        kinds |= dict.fromkeys(("structures4", "lesion_image", "lesion"), "brain_affine")
    for kind, affine in kinds.items():
        _save(subject[kind], subject[affine], folder / kind / f"{subject['subject']}.nii.gz")


def _datalists(splits: dict[str, list[int]], seed: int) -> dict[str, dict[str, Any]]:
    """The four Decathlon datalists, by file name."""

    def items(indices: list[int], image: str, label: str | None) -> list[dict[str, Any]]:
        result = []
        for index in indices:
            traits = _traits(index, seed)
            files = {"image": f"{image}/{traits['subject']}.nii.gz"}
            if label is not None:
                files["label"] = f"{label}/{traits['subject']}.nii.gz"
            result.append(files | traits)
        return result

    tasks: dict[str, tuple[str, str, str, dict[int, str], dict[int, str]]] = {
        "structures4": ("t1_brain", "structures4", "Four structures of the brain", {0: "T1w"}, STRUCTURES),
        "skull": ("t1", "brain_mask", "Brain mask of the whole head", {0: "T1w"}, {0: "background", 1: "brain"}),
        "lesion": ("lesion_image", "lesion", "Tumour-like lesion in four contrasts", CONTRASTS, LESIONS),
    }
    lists: dict[str, dict[str, Any]] = {}
    for name, (image, label, description, modality, labels) in tasks.items():
        lists[f"{name}.json"] = {
            "name": f"sample {name}",
            "description": f"{description}; synthetic, made from the MNI152 template",
            "modality": {str(k): v for k, v in modality.items()},
            "labels": {str(k): v for k, v in labels.items()},
            **{split: items(splits[split], image, label) for split in ("training", "validation", "test")},
        }
    lists["unlabelled.json"] = {
        "name": "sample unlabelled",
        "description": "Brains for pre-training, none of them a test subject; synthetic, made from the MNI152 template",
        "modality": {"0": "T1w"},
        "labels": {},
        "training": items(splits["training"] + splits["unlabelled"], "t1_brain", None),
        "validation": items(splits["validation"], "t1_brain", None),
        "test": [],
    }
    lists["anatomy.json"] = {
        "name": "sample anatomy",
        "description": "Label maps to draw images from, none of a test subject; made from the MNI152 template",
        "labels": {str(number): name for number, name in ANATOMY.items()},
        "training": items(splits["training"] + splits["unlabelled"], "anatomy", None),
        "validation": items(splits["validation"], "anatomy", None),
        "test": [],
    }
    return lists


def _is_complete(folder: Path, digest: str) -> bool:
    """Whether ``folder`` holds this very cohort.

    Raises:
        FileExistsError: if it holds anything else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found = json.loads((folder / "manifest.json").read_text())["digest"]
    except (OSError, ValueError, KeyError, TypeError):
        raise FileExistsError(
            f"{folder} holds something that is not a finished sample; name another output_dir or remove the folder."
        ) from None
    if found != digest:
        raise FileExistsError(
            f"{folder} holds a sample made with other parameters or by another version (see its manifest.json); "
            "name another output_dir or remove the folder."
        )
    return True


def make_sample(
    output_dir: str | os.PathLike | None = None,
    subjects: int = 24,
    unlabelled: int = 24,
    seed: int = 0,
    spacing: float = 2.0,
    progress: bool = True,
) -> str:
    """Make the sample cohort, unless it is there already, and return its folder.

    The folder holds ``t1``, ``t1_brain``, ``brain_mask``, ``anatomy``, ``structures4``, ``lesion_image`` and ``lesion``
    with one NIfTI file a subject (see :func:`make_subject`), and the datalists ``structures4.json`` (of ``t1_brain``),
    ``skull.json`` (of ``t1``), ``lesion.json``, ``unlabelled.json`` (``t1_brain`` of the training, validation and
    further, unlabelled subjects, never of test subjects) and ``anatomy.json`` (label maps of the same). Each item has
    ``subject``, ``age``, ``diagnosis`` and ``domain``. It appears at once, complete: processes that ask for it together
    wait for the first.

    Args:
        output_dir: folder to make; by default one in the cache (``$XDG_CACHE_HOME`` or ``~/.cache``, then
            ``monai-transfer-bundles``), named after the parameters.
        subjects: number of subjects with labels, at least 3: a third for test, a sixth for validation.
        unlabelled: number of further subjects, for pre-training only.
        seed: seed of the cohort; the same seed gives the same bits.
        spacing: voxel size in mm; must divide 4.
        progress: whether to show a progress bar.

    Raises:
        FileExistsError: if ``output_dir`` holds anything but this very cohort.
        ValueError: if a size or the spacing is out of range.
    """
    if subjects < 3 or unlabelled < 0:
        raise ValueError(f"subjects must be 3 or more and unlabelled 0 or more, got {subjects} and {unlabelled}.")
    _check_spacing(spacing)
    parameters = {"subjects": subjects, "unlabelled": unlabelled, "seed": seed, "spacing": float(spacing)}
    digest = hashlib.sha256(json.dumps([VERSION, parameters], sort_keys=True).encode()).hexdigest()
    if output_dir is None:
        output_dir = cache_folder() / f"sample-v{VERSION}-{digest[:12]}"
    folder = Path(output_dir).expanduser().absolute()
    if _is_complete(folder, digest):
        return str(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if not _is_complete(folder, digest):
            _build(folder, parameters, digest, progress)
    return str(folder)


def _build(folder: Path, parameters: dict[str, Any], digest: str, progress: bool) -> None:
    """Write the cohort to a hidden folder beside ``folder``, then give it its name."""
    seed, spacing = parameters["seed"], parameters["spacing"]
    splits = _splits(parameters["subjects"], parameters["unlabelled"])
    count = parameters["subjects"] + parameters["unlabelled"]
    logger.info("Making the sample cohort of %d subjects in %s (once; later runs reuse it).", count, folder)
    # Not tempfile.mkdtemp: its mode 0700 would shut out others who share the cache.
    _remove_killed(folder)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    temporary.mkdir()
    try:
        for index in tqdm(range(count), desc="sample cohort", unit="subject", disable=not progress):
            labelled = index < parameters["subjects"]
            _write_subject(make_subject(index, seed, spacing, lesion=labelled), temporary, labelled)
        for name, datalist in _datalists(splits, seed).items():
            (temporary / name).write_text(json.dumps(datalist, indent=4) + "\n")
        manifest = {"generator": __name__, "version": VERSION, "digest": digest, "parameters": parameters}
        manifest["source"] = "MNI152 template (ICBM 2009a nonlinear symmetric) as distributed with nilearn"
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=4) + "\n")
        try:
            os.replace(temporary, folder)
        except OSError:
            # Another machine, which does not see our lock, may have been first.
            if not _is_complete(folder, digest):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_killed(folder: Path) -> None:
    """Remove what builds that were killed have left: no build takes a day."""
    for left in folder.parent.glob(f".{glob.escape(folder.name)}.{'[0-9a-f]' * 32}"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > STALE_ELSEWHERE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
