"""Inferers that MONAI does not have."""

from .mirrored import MirroredSlidingWindowInferer
from .slice_window import SliceWindowInferer

__all__ = ["MirroredSlidingWindowInferer", "SliceWindowInferer"]
