from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["check_mirroring"]


def check_mirroring(
    mirror_axes: Sequence[int],
    orientation: str,
    structure_names: Mapping[str | int, str] | None,
    augmentation: Sequence[Any] | None = None,
) -> None:
    """Refuse to mirror left to right where the classes tell the sides apart: the labels would be wrong.

    Refuse also to mirror in inference alone.

    Args:
        mirror_axes: spatial axes, from 0, that training and inference mirror.
        orientation: axis codes of the images, such as ``"RAS"``.
        structure_names: class number -> name; None checks no names.
        augmentation: the random transforms of training; None checks none.

    Raises:
        ValueError: one of the axes runs from left to right, and a class has a counterpart on the other side; or
            training does not mirror one of the axes.
    """
    from monai.transforms import RandFlipd
    from monai.utils import ensure_tuple

    from ..data.label_maps import other_side
    from ..volumes import left_right_axis

    names = [str(name) for name in (structure_names or {}).values()]
    left = next((name for name in names if other_side(name) in names), None)
    if left is not None and left_right_axis(orientation) in mirror_axes:
        raise ValueError(
            f"`mirror_axes` {list(mirror_axes)} mirrors left to right, but the task has classes of either side, such "
            f"as {left!r} and {other_side(left)!r}: leave out presets/mirror.json."
        )
    if augmentation is None:
        return
    flippers = [step.flipper.spatial_axis for step in augmentation if isinstance(step, RandFlipd)]
    flipped = {axis for axes in flippers for axis in ((0, 1, 2) if axes is None else ensure_tuple(axes))}
    if not flipped.issuperset(mirror_axes):
        raise ValueError(
            f"Inference mirrors the axes {list(mirror_axes)}, but `augmentation` does not: list presets/mirror.json "
            "behind the files that replace `augmentation`, such as presets/nnunet_intensities.json."
        )
