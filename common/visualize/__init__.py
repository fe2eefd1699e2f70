"""Pictures of volumes: choice of slice, orientation, and colours of classes."""

from .axial import AxialView
from .colours import class_colours
from .panels import class_legend, grey_panel, mask_panel, side_by_side

__all__ = ["AxialView", "class_colours", "class_legend", "grey_panel", "mask_panel", "side_by_side"]
