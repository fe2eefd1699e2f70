"""One synthetic subject: who it is, its anatomy and its images."""

from __future__ import annotations

import math
from typing import Any

import nibabel as nib
import numpy as np

from .anatomy import brain_anatomy, ellipsoid_distance, head_anatomy
from .grid import (
    BRAIN_CORNER,
    BRAIN_EXTENT,
    CENTRE,
    HEAD_CORNER,
    HEAD_EXTENT,
    check_spacing,
    interpolate,
    ramp,
    smooth_field,
    world_grid,
)
from .lesion import add_lesion
from .scanner import SITES, Site, scan
from .template import SUBCORTICAL, Template, read_template
from .tissues import structures, tissue_shares, tissue_signal


def subject_traits(index: int, seed: int) -> dict[str, Any]:
    """Traits of a subject. Sites alternate, diagnoses come in pairs, and ages step through their range.

    So any four successive subjects include each site with each diagnosis, and longer series cover the ages 20 to 85
    evenly: small splits are balanced with any seed. The step is a quarter of the golden ratio. That also spreads the
    ages evenly for each site and diagnosis, every fourth subject.
    """
    age = 20 + 65 * ((np.random.default_rng(seed).random() + index * (math.sqrt(5) + 1) / 8) % 1)
    return {
        "subject": f"sub-{index + 1:03d}",
        "age": round(float(age), 1),
        "diagnosis": index // 2 % 2,
        "domain": ("site_a", "site_b")[index % 2],
    }


def _head_coordinates(rng: np.random.Generator, spacing: float) -> np.ndarray:
    """Place of each voxel of the head's grid in the template, in mm: shape (3, *shape)."""
    scale = np.clip(rng.normal(0.90, 0.02), 0.85, 0.93) * (1 + np.clip(rng.normal(0, 0.015, 3), -0.025, 0.025))
    tilt = np.clip(rng.normal(0, math.radians(3), 3), -math.radians(7), math.radians(7))
    # Down a little: the neck has room to spare below, the crown none above.
    shift = rng.uniform(-1.5, 1.5, 3) - np.array([0, 0, 2])
    (cx, cy, cz), (sx, sy, sz) = np.cos(tilt), np.sin(tilt)
    turn = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    turn = turn @ np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]]) @ np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    to_template = turn / scale[:, None]
    world = world_grid(HEAD_CORNER, HEAD_EXTENT, spacing)
    shape = np.broadcast_shapes(*(w.shape for w in world))
    coordinates = 2.0 * smooth_field(rng, HEAD_CORNER, shape, spacing, 48, 3)
    for i in range(3):
        for j in range(3):
            coordinates[i] += np.float32(to_template[i, j]) * (world[j] - np.float32(CENTRE[j] + shift[j]))
        coordinates[i] += np.float32(CENTRE[i])
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
    rng: np.random.Generator, template: Template, coordinates: np.ndarray, spacing: float, atrophy: dict[str, float]
) -> np.ndarray:
    """Add changes inside the skull to the head's deformation: atrophy, and folds that differ between people."""
    index = (coordinates - template.origin[:, None, None, None].astype(np.float32)) / 2
    inner = 1.3 * smooth_field(rng, BRAIN_CORNER, coordinates.shape[1:], spacing, 18, 3)
    for axis in range(3):
        push = (
            np.float32(atrophy["surface"]) * template.surface_shift[axis]
            + np.float32(atrophy["hippocampus"]) * template.hippocampus_shift[axis]
            - np.float32(atrophy["ventricles"]) * template.ventricle_shift[axis]
        )
        inner[axis] += interpolate(push, index)
    return coordinates + inner


def _head_signal(
    rng: np.random.Generator,
    template: Template,
    coordinates: np.ndarray,
    spacing: float,
    site: Site,
    inside: np.ndarray,
) -> np.ndarray:
    """Signal of the whole head; ``inside`` is the signal within the skull."""
    index = (coordinates - template.origin[:, None, None, None].astype(np.float32)) / 2
    shape = inside.shape
    beyond = interpolate(template.skull_distance, index)
    bone_map, skin_map, marrow_map = smooth_field(rng, HEAD_CORNER, shape, spacing, 50, 3)
    streaks = smooth_field(rng, HEAD_CORNER, shape, spacing, 8)[0]
    fatness = rng.uniform(-1.5, 3.0)
    depth = -interpolate(template.skin_distance, index) + 1.2 * skin_map + np.float32(fatness)
    thickness = np.float32(rng.uniform(5.5, 7.5)) * np.exp(0.18 * bone_map)
    x, y, z = coordinates

    fat = np.clip(0.18 + 0.35 * streaks, 0, 0.8) * ramp(-z - 25, 20)
    # Under the skin of the vault the fat reaches the skull; over the temples and the neck it covers muscle.
    muscle = np.maximum(ramp(-12 - z, 12), ramp(abs(x) - 52, 8) * ramp(22 - z, 10) * ramp(42 - y, 10))
    layer = 4.0 + 0.6 * fatness + 1.2 * skin_map
    fat = np.maximum(fat, ramp(depth - 1.8, spacing) * np.maximum(ramp(layer - depth, spacing), 1 - muscle))
    eyes = ellipsoid_distance((abs(x), y, z), (31, 62, -34), (13, 13, 13))
    fat = np.maximum(fat, ramp(-ellipsoid_distance((abs(x), y, z), (28, 52, -34), (15, 20, 15)), 3))
    signal = 0.45 + (site.fat - 0.45) * fat
    signal += (0.16 - signal) * ramp(-eyes, spacing)
    air = np.minimum(
        ellipsoid_distance((abs(x), y, z), (6, 62, -54), (5, 26, 18)),
        ellipsoid_distance((abs(x), y, z), (27, 52, -64), (11, 15, 14)),
    )
    air = np.minimum(air, ellipsoid_distance((x, y, z), (0, 18, -84), (10, 9, 40)))
    signal *= 1 - 0.93 * ramp(-air + 1.5 * streaks, spacing)
    signal *= ramp(depth, spacing)
    # Compact bone has no signal; the marrow between its tables does.
    marrow = ramp(0.24 * thickness - abs(beyond - 0.52 * thickness), spacing) * np.exp(0.2 * marrow_map + 0.1 * streaks)
    bone = 0.05 + (site.marrow - 0.05) * np.clip(marrow, 0, 1.3)
    signal += (bone - signal) * ramp(thickness - beyond, spacing) * ramp(depth - 2, spacing)
    cord = ramp(6 - interpolate(template.cord, index), spacing) * ramp(-70 - z, spacing)
    inside = inside + (site.white * 0.9 - inside) * cord
    return signal + (inside - signal) * ramp(-beyond, spacing)


def make_subject(index: int, seed: int = 0, spacing: float = 2.0, lesion: bool = True) -> dict[str, Any]:
    """Make one subject: a pure function of its arguments.

    Subjects with an even ``index`` come from ``site_a`` (little noise, strong contrast, bright middle), those with an
    odd one from ``site_b`` (noise, weak contrast, bright rim, thick slices). Diagnosis 1 widens ventricles and sulci
    and shrinks the hippocampi beyond the subject's age.

    Args:
        index: number of the subject, from 0.
        seed: seed of the cohort.
        spacing: voxel size in mm. The same subject at another spacing has the same anatomy; must divide 4 mm.
        lesion: whether to also make the lesion task (half the time).

    Returns:
        ``subject``, ``age`` (years), ``diagnosis`` (0 or 1), ``domain``; ``head_affine`` with ``t1`` (int16),
        ``brain_mask`` (uint8) and ``anatomy`` (uint16, finer labels of the whole head by FreeSurfer's numbers, see
        ``anatomy.py``) on the head's grid, 96 x 112 x 96 voxels at 2 mm; ``brain_affine`` with ``t1_brain`` (int16),
        ``structures4`` (uint8), and on request ``lesion_image`` (int16, contrasts FLAIR, T1, T1 with contrast agent, T2
        along the last axis) and ``lesion`` (uint8) on the brain's own, 80 x 96 x 80 at 2 mm. ``structures4`` covers the
        brain mask by the rule of the label maps: 1 cerebral cortex, 2 all other grey matter (the cerebellar cortex
        included), 3 white matter (with the brain stem), 4 CSF (ventricles, and sulci inside the mask).
        ``lesion``: 1 oedema, 2 non-enhancing core, 3 enhancing rim.

    Raises:
        ValueError: if ``spacing`` does not divide 4 mm.
    """
    check_spacing(spacing)
    traits = subject_traits(index, seed)
    site = SITES[traits["domain"]]
    streams = np.random.SeedSequence([seed, index]).spawn(4)
    anatomy, contents, scanner, tumour = (np.random.default_rng(stream) for stream in streams)
    template = read_template()
    head = _head_coordinates(anatomy, spacing)
    start = np.rint((BRAIN_CORNER - HEAD_CORNER) / spacing).astype(int)
    size = np.rint(BRAIN_EXTENT / spacing).astype(int)
    box = tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))

    atrophy = _atrophy(anatomy, traits["age"], traits["diagnosis"])
    inner_head = head[:, box[0], box[1], box[2]]
    coordinates = _deform_brain(anatomy, template, inner_head, spacing, atrophy)
    shape = coordinates.shape[1:]
    sulci, thickness, patches, fine = (
        smooth_field(contents, BRAIN_CORNER, shape, spacing, scale)[0] for scale in (14, 30, 10, 6)
    )
    index2 = (coordinates - template.origin[:, None, None, None].astype(np.float32)) / 2
    wetness = np.float32(atrophy["sulci"]) + 0.4 * sulci + 0.25 * thickness
    wetness += np.float32(2.0 * atrophy["hippocampus"]) * interpolate(template.temporal_horn, index2)
    tissues = tissue_shares(template, coordinates, wetness)
    labels = structures(tissues)
    anatomy_map = np.zeros(head.shape[1:], np.uint16)
    anatomy_map[box] = brain_anatomy(labels, coordinates, interpolate(template.ventricle_distance, index2), SUBCORTICAL)
    head_index = (head - template.origin[:, None, None, None].astype(np.float32)) / 2
    around = (interpolate(distance, head_index) for distance in (template.skull_distance, template.skin_distance))
    anatomy_map = head_anatomy(anatomy_map, *around)

    csf, grey, white = (value + contents.normal(0, site.spread) for value in (site.csf, site.grey, site.white))
    signal = tissue_signal(tissues, csf, grey, white, (white - grey) / 0.225)
    # Ageing white matter goes patchy around the ventricles.
    worn = ramp(
        3.0 + 5.0 * (atrophy["white_lesions"] - 0.5) + 2.5 * patches - interpolate(template.ventricle_distance, index2),
        3,
    )
    worn *= np.float32(min(1.0, 2 * atrophy["white_lesions"])) * tissues.white
    signal += (grey - white) * np.float32(0.8) * worn
    signal *= 1 + 0.012 * fine + 0.012 * patches
    inside = np.full(head.shape[1:], csf, np.float32)
    inside[box] = signal

    whole = _head_signal(contents, template, head, spacing, site, inside)
    scanned = scan(scanner, whole, HEAD_CORNER, spacing, site, scanner.uniform(*site.noise))
    t1 = np.rint(scanned * scanner.uniform(*site.scale)).clip(0, 32767).astype(np.int16)
    mask = np.zeros(t1.shape, np.uint8)
    mask[box] = tissues.brain
    result = {
        **traits,
        "head_affine": nib.affines.from_matvec(np.diag([spacing] * 3), HEAD_CORNER),
        "brain_affine": nib.affines.from_matvec(np.diag([spacing] * 3), BRAIN_CORNER),
        "t1": t1,
        "brain_mask": mask,
        "anatomy": anatomy_map,
        "t1_brain": t1[box] * tissues.brain,
        "structures4": labels,
    }
    if lesion:
        result["lesion_image"], result["lesion"] = add_lesion(
            tumour, template, inner_head, coordinates, wetness, tissues, spacing, site
        )
    return result
