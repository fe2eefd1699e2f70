"""Inferers that MONAI does not have."""

from .coarse_net import med3d_of_file
from .flip_tta import MirroredSlidingWindowInferer
from .resized import ResizedInferer
from .slice_window import SliceWindowInferer
from .sliding_window import SlidingWindowInferer
from .two_stage import TwoStageInferer

__all__ = [
    "MirroredSlidingWindowInferer",
    "ResizedInferer",
    "SliceWindowInferer",
    "SlidingWindowInferer",
    "TwoStageInferer",
    "med3d_of_file",
]
