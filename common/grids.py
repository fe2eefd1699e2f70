"""Whether two volumes lie on one grid of voxels."""

from __future__ import annotations

from collections.abc import Sequence

import nibabel as nib
import numpy as np

from .volumes import format_shape

__all__ = ["grid_problem", "stored_grid_problem"]

MAX_OFFSET_IN_VOXELS = 0.1
"""Writers round affines differently; a tenth of a voxel is far from what would misplace a label."""


def grid_problem(
    shape: Sequence[int],
    affine: np.ndarray,
    reference_file: str,
    reference_shape: Sequence[int],
    reference_affine: np.ndarray,
) -> str | None:
    """What keeps a volume off the grid of another, as the end of a sentence that begins with its file.

    Args:
        shape: its size along its axes; those after the third are ignored.
        affine: from its voxels to mm, 4 x 4.
    """
    shape, expected = tuple(shape[:3]), tuple(reference_shape[:3])
    if shape != expected:
        return f"has the shape {format_shape(shape)}, but {reference_file} has {format_shape(expected)}"
    corners = np.array(np.meshgrid(*([0, n - 1] for n in (*shape, 1, 1)[:3]), indexing="ij")).reshape(3, -1)
    difference = affine - reference_affine
    offset = np.linalg.norm(difference[:3, :3] @ corners + difference[:3, 3:], axis=0).max()
    if not offset <= MAX_OFFSET_IN_VOXELS * np.linalg.norm(reference_affine[:3, :3], axis=0).min():
        return f"lies up to {offset:.3g} mm away from {reference_file} (their affines differ)"
    return None


def stored_grid_problem(
    shape: Sequence[int],
    affine: np.ndarray,
    reference_file: str,
    reference_shape: Sequence[int],
    reference_affine: np.ndarray,
) -> str | None:
    """As ``grid_problem``, for files of any formats: how their axes are stored is no difference."""
    reference = _in_anatomical_order(reference_shape, reference_affine)
    return grid_problem(*_in_anatomical_order(shape, affine), reference_file, *reference)


def _in_anatomical_order(shape: Sequence[int], affine: np.ndarray) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and affine of a volume whose axes are brought to right-anterior-superior order."""
    shape = tuple(shape[:3])
    turn = nib.orientations.io_orientation(affine)
    order = np.argsort(turn[:, 0])
    return tuple(shape[i] for i in order), affine @ nib.orientations.inv_ornt_aff(turn, shape)
