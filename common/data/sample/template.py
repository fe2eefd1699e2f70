"""The MNI152 template and maps derived from it for all subjects."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy import ndimage as ndi

from .anatomy import ellipsoid_distance, stem_axis, tentorium
from .grid import ramp

# Deep grey matter as ellipsoids of the right side: centre (MNI mm), radii (mm), yaw (degrees; negative turns the rear
# end outwards). Generous on purpose: the grey-matter map cuts them to shape.
SUBCORTICAL = {
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


class Template(NamedTuple):
    """The template, once per process: maps on the fine grid (1 mm), geometry on the coarse one (2 mm), one origin."""

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


def _largest(mask: np.ndarray) -> np.ndarray:
    labels, _ = ndi.label(mask)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == sizes.argmax()


@lru_cache(maxsize=1)
def read_template() -> Template:
    """Read the template and compute once all that does not depend on the subject."""
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
    distances = [ellipsoid_distance(deep_grid, *ellipsoid) for ellipsoid in SUBCORTICAL.values()]
    deep[near] = ramp(-np.minimum.reduce(distances), 2.0)

    # The maps call the pallidum and the outer thalamus half white, the brain stem half grey, and the partial volume
    # around the ventricles grey; put each where an anatomist would. `detail`, below, keeps the image as it was.
    moved = deep * np.clip((0.92 - white) / 0.25, 0, 1) * white
    grey, white = grey + moved, white - moved
    middle = stem_axis(z)
    stem = ramp(17 - np.sqrt(x**2 + (y - middle) ** 2), 3) * ramp(-6 - z, 6) * (1 - deep)
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
    moved = margin * ramp(z - 10, 10) * white
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
        [ellipsoid_distance(mirrored, *e) for n, e in SUBCORTICAL.items() if "hippocampus" in n]
    )
    ventricle_distance = _signed_distance(ventricles[half], 2)
    # Hippocampal loss opens the temporal horn, above and outside the hippocampus.
    above = np.clip((hippocampus + 1) / 1.5, 0, 1) * np.clip((4 - hippocampus) / 2, 0, 1)
    horn = above * (abs(cx) > 25) * (cz > -22) * (cz < -4) * (cy < -6) * (cy > -32)
    return Template(
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
