from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["check_mirroring"]


def check_mirroring(
    mirror_axes: Sequence[int], orientation: str, structure_names: Mapping[str | int, str] | None
) -> None:
    """Refuse to mirror left to right where the classes tell the sides apart: the labels would be wrong.

    Args:
        mirror_axes: spatial axes, from 0, that training and inference mirror.
        orientation: axis codes of the images, such as ``"RAS"``.
        structure_names: class number -> name; None checks nothing.

    Raises:
        ValueError: one of the axes runs from left to right, and a class has a counterpart on the other side.
    """
    from ..data.label_maps import other_side
    from ..volumes import left_right_axis

    names = [str(name) for name in (structure_names or {}).values()]
    left = next((name for name in names if other_side(name) in names), None)
    if left is not None and left_right_axis(orientation) in mirror_axes:
        raise ValueError(
            f"`mirror_axes` {list(mirror_axes)} mirrors left to right, but the task has classes of either side, such "
            f"as {left!r} and {other_side(left)!r}: leave out presets/mirror.json."
        )
