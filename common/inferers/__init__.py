"""Inferers that MONAI does not have."""

from .mirrored import MirroredSlidingWindowInferer

__all__ = ["MirroredSlidingWindowInferer"]
