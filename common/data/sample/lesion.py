"""Tumour-like lesions in four contrasts."""

from __future__ import annotations

import numpy as np
from scipy import ndimage as ndi

from .grid import BRAIN_CORNER, BRAIN_EXTENT, ramp, smooth_field, world_grid
from .scanner import Site, scan
from .template import Template
from .tissues import Tissues, tissue_shares, tissue_signal

LESIONS = {0: "background", 1: "oedema", 2: "non-enhancing core", 3: "enhancing rim"}
CONTRASTS = {0: "FLAIR", 1: "T1w", 2: "T1gd", 3: "T2w"}
# Signal of CSF, grey, white, oedema, non-enhancing core, enhancing rim in the lesion task's four contrasts.
_CONTRAST_SIGNAL = {
    "FLAIR": (0.12, 0.58, 0.47, 0.98, 0.42, 0.78),
    "T1w": (0.20, 0.55, 0.84, 0.56, 0.34, 0.54),
    "T1gd": (0.20, 0.56, 0.83, 0.56, 0.34, 1.18),
    "T2w": (1.10, 0.60, 0.42, 0.88, 0.98, 0.72),
}


def add_lesion(
    rng: np.random.Generator,
    template: Template,
    head: np.ndarray,
    coordinates: np.ndarray,
    wetness: np.ndarray,
    tissues: Tissues,
    spacing: float,
    site: Site,
) -> tuple[np.ndarray, np.ndarray]:
    """A tumour in four contrasts: image (*shape, 4) int16 and labels 1 oedema, 2 core, 3 enhancing rim."""
    shape, brain = tissues.csf.shape, tissues.brain
    world = world_grid(BRAIN_CORNER, BRAIN_EXTENT, spacing)
    depth = spacing * ndi.distance_transform_edt(brain)
    # Cerebral white matter, above the brain stem and the cerebellum.
    seats = np.flatnonzero((depth > 16) & (tissues.white > 0.6) & (head[2] > -5) & (abs(head[0]) > 14))
    centre = np.unravel_index(seats[rng.integers(seats.size)], shape)
    offset = [w - w.ravel()[c] for w, c in zip(world, centre, strict=True)]
    radius = rng.uniform(9.0, 18.0)
    axes = np.exp(rng.normal(0, 0.14, 3))
    distance = np.sqrt(sum((o * np.float32(a)) ** 2 for o, a in zip(offset, axes, strict=True)))
    coarse, fine, rough = (smooth_field(rng, BRAIN_CORNER, shape, spacing, s)[0] for s in (22, 10, 6))
    edge = distance - radius * (1 + 0.20 * coarse + 0.18 * fine)

    # Mass effect: what surrounds the tumour is pushed away from it.
    near = edge < 30
    push = rng.uniform(0.25, 0.45) * radius * np.exp(-((np.maximum(edge, 0) / 13) ** 2)) / np.maximum(distance, 3)
    moved = coordinates.copy()
    for axis in range(3):
        moved[axis] -= push * offset[axis] * near
    around = tissue_shares(template, moved[:, near], wetness[near])
    tissues = Tissues(*(whole.copy() for whole in tissues))
    for whole, part in zip(tissues, around, strict=True):
        whole[near] = part

    rim = radius * rng.uniform(0.15, 0.25) * np.exp(0.35 * rough)
    reach = rng.uniform(6.0, 16.0) * (0.25 + 0.75 * ndi.gaussian_filter(tissues.white, 3 / spacing)) + 2.5 * fine
    # Tumour replaces tissue and stops at CSF spaces; oedema follows white matter.
    solid = ramp(0.6 - tissues.csf, 0.3) * brain
    tumour = ramp(-edge, spacing) * solid
    core = ramp(-edge - np.maximum(rim, 0.75 * spacing), spacing) * solid
    oedema = ramp(reach - edge, 2 * spacing) * solid * np.clip(2.2 * tissues.white, 0.15, 1)
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
        signal = tissue_signal(tissues, csf, grey, white, (white - grey) / 0.225)
        for share, value in zip((oedema, tumour, core), (sick[0], sick[2], sick[1]), strict=True):
            signal += (np.float32(value * rng.normal(1, 0.04)) * (1 + 0.06 * rough + 0.05 * fine) - signal) * share
        scanned = scan(rng, signal, BRAIN_CORNER, spacing, site, noise)
        image[..., channel] = np.rint(scanned * rng.uniform(*site.scale)).clip(0, 32767) * brain
    labels[~brain] = 0
    return image, labels
