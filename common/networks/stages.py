"""What encoders that work in stages have in common: the image size that their strides allow."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["check_size"]


def check_size(size: Sequence[int], stride: Sequence[int], network: str = "This network") -> None:
    """Refuse an image with a side that is no multiple of the stride.

    Args:
        size: voxels of the image per axis.
        stride: voxels per axis for one of the deepest map.
        network: the network, for the error.

    Raises:
        ValueError: with what to set.
    """
    if any(side % step for side, step in zip(size, stride, strict=True)):
        raise ValueError(
            f"{network} needs an image size that is a multiple of {stride}, not {tuple(size)}; set roi_size to such a "
            "size."
        )
