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
    from ..data.label_maps import sided_pairs
    from ..volumes import left_right_axis

    names = {int(number): str(name) for number, name in (structure_names or {}).items()}
    pairs = sided_pairs({name: [number] for number, name in names.items()})
    if pairs and left_right_axis(orientation) in mirror_axes:
        left, right = (names[number] for number in pairs[0])
        raise ValueError(
            f"`mirror_axes` {list(mirror_axes)} mirrors left to right, but the task has classes of either side, such "
            f"as {left!r} and {right!r}: leave out presets/mirror.json."
        )
