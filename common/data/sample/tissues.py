"""Tissue shares of each voxel, the labels that follow from them, and their signal."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .grid import interpolate
from .template import Template

STRUCTURES = {0: "background", 1: "cortex", 2: "subcortical grey matter", 3: "white matter", 4: "CSF"}


class Tissues(NamedTuple):
    """Tissue shares of each voxel; outside the brain all is CSF."""

    csf: np.ndarray
    grey: np.ndarray
    white: np.ndarray
    deep: np.ndarray
    detail: np.ndarray
    brain: np.ndarray


def tissue_shares(template: Template, coordinates: np.ndarray, wetness: np.ndarray) -> Tissues:
    """Tissue shares at template ``coordinates`` (3, ...) mm; ``wetness`` shifts the odds of CSF (log).

    The template is an average; the power sharpens its borders to those of one person.
    """
    index = coordinates - template.origin.astype(np.float32).reshape(3, *[1] * (coordinates.ndim - 1))
    grey, white, brain = (interpolate(m, index, "constant") for m in (template.grey, template.white, template.brain))
    csf = np.clip(1 - grey - white, 0, 1)
    powers = [np.power(share + np.float32(0.01), np.float32(1.6)) for share in (csf, grey, white)]
    powers[0] *= np.exp(wetness)
    total = powers[0] + powers[1] + powers[2]
    csf, grey, white = (p / total for p in powers)
    return Tissues(
        csf,
        grey,
        white,
        interpolate(template.deep, index, "constant"),
        interpolate(template.detail, index, "constant"),
        brain > 0.5,
    )


def structures(tissues: Tissues) -> np.ndarray:
    """Labels 0 background, 1 cortex, 2 other grey, 3 white, 4 CSF: the largest share, inside the brain mask."""
    grey = np.where(tissues.deep > 0.5, np.uint8(2), np.uint8(1))
    labels = np.where(tissues.white > tissues.grey, np.uint8(3), grey)
    labels[tissues.csf > np.maximum(tissues.grey, tissues.white)] = 4
    labels[~tissues.brain] = 0
    return labels


def tissue_signal(tissues: Tissues, csf: float, grey: float, white: float, detail: float) -> np.ndarray:
    mixed = csf * tissues.csf + grey * tissues.grey + white * tissues.white
    # Where atrophy has put CSF there is no tissue left to show the template's detail.
    return mixed + np.float32(detail) * tissues.detail * (1 - 0.7 * tissues.csf)
