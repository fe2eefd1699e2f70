"""Arguments that the generators of label maps and images share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["check_range", "check_spacing", "spacing_per_axis"]


def check_range(name: str, pair: Sequence[Any]) -> None:
    """Refuse anything but a range of two numbers that are 0 or more.

    Raises:
        ValueError: with the argument's name.
    """
    if len(pair) != 2 or not 0 <= pair[0] <= pair[1]:
        raise ValueError(f"{name} must be a range of two numbers, 0 or more, the lower first, not {list(pair)}.")


def check_spacing(spacing: Sequence[float]) -> None:
    """Refuse voxel sizes that are not above 0.

    Raises:
        ValueError: with the sizes.
    """
    if not all(size > 0 for size in spacing):
        raise ValueError(f"spacing must be above 0 mm along each axis, not {list(spacing)}.")


def spacing_per_axis(spacing: float | Sequence[float], axes: int) -> list[float]:
    """Voxel size of each of ``axes`` axes, given as a number for all or one for each.

    Raises:
        ValueError: their number differs from the number of axes, or one of them is not above 0.
    """
    each = [float(spacing)] * axes if isinstance(spacing, int | float) else list(spacing)
    if len(each) != axes:
        raise ValueError(f"spacing has {len(each)} numbers, but the label maps have {axes} axes.")
    check_spacing(each)
    return each
