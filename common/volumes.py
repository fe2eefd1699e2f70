"""Problems of volumes in the words of the error messages. Imports only numpy, so it loads fast."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Hashable, Sequence
from typing import Any

import numpy as np

__all__ = [
    "AXIS_CODES",
    "VolumeError",
    "and_more",
    "diagonal",
    "first_line",
    "format_shape",
    "format_values",
    "image_problem",
    "is_orientation",
    "label_problem",
    "left_right_axis",
    "non_finite_problem",
    "unknown_label_problem",
    "volume_name",
    "whole_labels",
]

logger = logging.getLogger(__name__)

AXIS_CODES = "give three capital letters, one of L and R, one of P and A, and one of I and S, such as RAS"
"""What an orientation is, as the end of a sentence."""
NEARLY_WHOLE = 1e-6


class VolumeError(ValueError):
    """The file of a volume cannot be used; the message is the end of a sentence that begins with the file."""


def non_finite_problem(values: np.ndarray) -> str | None:
    """Say that voxels are not finite, as the end of a sentence; `None` if all are."""
    count = values.size - int(np.count_nonzero(np.isfinite(values)))
    return f"has {count} voxels that are not finite (NaN or infinite)" if count else None


def image_problem(image: np.ndarray) -> str | None:
    """Say what is wrong with the values of an image, as the end of a sentence; `None` if nothing is."""
    if image.size == 0:
        return f"has no voxels (shape {format_shape(image.shape)})"
    problem = non_finite_problem(image)
    if problem is None and image.min() == image.max():
        return f"is constant (every voxel is {image.flat[0]:g})"
    return problem


def whole_labels(labels: np.ndarray, name: str) -> np.ndarray:
    """Round labels within 1e-6 of a whole number; slope and offset of a header can cause such values.

    This is logged once, with the name of the first label image. Labels further off stay unchanged.
    """
    if not np.issubdtype(labels.dtype, np.inexact):
        return labels
    whole = np.round(labels)
    off = labels != whole
    if not off.any():
        return labels
    with np.errstate(invalid="ignore"):  # infinite ones
        near = np.abs(labels - whole) <= NEARLY_WHOLE
    if (off & near).any():
        _say_rounded(name, format_values(labels[off & near], 3))
    return np.where(near, whole, labels)


_told: set[str] = set()


def _say_rounded(name: str, values: str) -> None:
    if not _told:
        _told.add(name)
        logger.warning(
            "%s has labels close to whole numbers (%s), which are rounded, in this and all other files.", name, values
        )


def label_problem(labels: np.ndarray, num_classes: int | None = None) -> str | None:
    """Say what is wrong with the values of a label image, as the end of a sentence; `None` if nothing is.

    Args:
        labels: label image of any shape and type.
        num_classes: labels must lie in `[0, num_classes)`; `None` sets no upper bound.
    """
    if np.issubdtype(labels.dtype, np.inexact):
        problem = non_finite_problem(labels)
        if problem:
            return problem
        fractional = labels[labels != np.round(labels)]
        if fractional.size:
            return f"has labels that are not whole numbers ({format_values(fractional)})"
    outside = labels[labels < 0] if num_classes is None else labels[(labels < 0) | (labels >= num_classes)]
    if outside.size:
        allowed = "0 or more" if num_classes is None else f"0 to {num_classes - 1}"
        return f"has labels outside {allowed} ({format_values(outside)})"
    return None


def unknown_label_problem(labels: np.ndarray, known: Collection[int]) -> str | None:
    """Say that a label image of whole numbers has other labels than `known`, as the end of a sentence; else `None`."""
    unknown = [label for label in np.unique(labels).tolist() if label not in known]
    return f"has labels that no class names ({format_values(np.array(unknown), 10)})" if unknown else None


def volume_name(volume: Any, key: Hashable) -> str:
    """The file that MONAI loaded a volume from (all files of a batch), or its key in the item."""
    file = getattr(volume, "meta", {}).get("filename_or_obj")
    if isinstance(file, list | tuple):
        file = ", ".join(map(str, file))
    return str(file) if file else f"The volume under the key {key!r}"


def is_orientation(codes: Any) -> bool:
    """Whether a value is the axis codes of an orientation."""
    return isinstance(codes, str) and len(codes) == 3 and all(set(codes) & set(pair) for pair in ("LR", "PA", "IS"))


def left_right_axis(orientation: str) -> int:
    """The axis, from 0, that runs from left to right, or back, in images of an orientation such as ``"RAS"``.

    Raises:
        ValueError: the value is no orientation.
    """
    if not is_orientation(orientation):
        raise ValueError(f"orientation is {orientation!r}: {AXIS_CODES}.")
    return next(axis for axis, code in enumerate(orientation) if code in "LR")


def format_values(values: np.ndarray, count: int = 5) -> str:
    """The first of the different values, smallest first."""
    unique = np.unique(values)
    return ", ".join(f"{v:.9g}" for v in unique[:count].tolist()) + (", ..." if unique.size > count else "")


def and_more(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def format_shape(shape: Sequence[float]) -> str:
    """A shape, or another row of numbers, as `4x5x6`."""
    return "x".join(map(str, shape))


def first_line(error: Exception) -> str:
    """First line of an error's message, or its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def diagonal(shape: Sequence[int], spacing: Sequence[float]) -> float:
    """Length of the diagonal of an image in mm, the largest distance in it."""
    return math.dist([0.0] * len(spacing), [n * size for n, size in zip(shape, spacing, strict=True)])
