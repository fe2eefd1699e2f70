from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .colours import class_colours

__all__ = ["class_legend", "grey_panel", "mask_panel", "side_by_side"]

ALPHA = 0.65
GAP = 2
CAPTION = 14
READABLE = 72
"""Width in pixels from which a panel has room for its caption."""
LONGEST = 192
"""Longest side in pixels to which a small panel is enlarged."""
SQUARE = 8
ENTRY = 30
"""Width in pixels of a class in the legend: a square and a number."""


def grey_panel(picture: torch.Tensor, reference: torch.Tensor | None = None) -> torch.Tensor:
    """Turn a picture (H, W) of any values into grey levels (3, H, W) in 0..1.

    Black and white are the 1st and 99th percentile of ``reference``, by default the picture itself. So a few bright
    voxels do not darken the rest, and pictures with one reference are comparable.
    """
    values = (picture if reference is None else reference).flatten().float()
    low, high = torch.quantile(values, torch.tensor([0.01, 0.99])).tolist()
    if high <= low:  # fewer than a hundredth of the pixels are not background
        low, high = float(values.min()), float(values.max())
    grey = ((picture - low) / max(high - low, 1e-12)).clamp(0, 1)
    return torch.nan_to_num(grey).expand(3, -1, -1)


def mask_panel(grey: torch.Tensor, classes: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Class numbers (H, W) in the colours of ``class_colours`` over grey levels (3, H, W); 0 is see-through.

    Args:
        num_classes: number of classes with the background. Larger class numbers get the colour of the last class.
    """
    shades = [[byte / 255 for byte in bytes.fromhex(colour[1:])] for colour in class_colours(max(1, num_classes - 1))]
    table = torch.tensor([[0.0] * 3, *shades])
    numbers = classes.long().clamp(0, len(shades))
    return torch.where(numbers > 0, (1 - ALPHA) * grey + ALPHA * table[numbers].movedim(-1, 0), grey)


def side_by_side(panels: Sequence[torch.Tensor], captions: Sequence[str] = ()) -> torch.Tensor:
    """Panels (3, H, W) of one height in a row, (3, H', W'), with a white line between them.

    Args:
        captions: text above each panel. Small panels are enlarged by a whole number, so that the text fits; if a panel
            is too narrow for that, the text is cut off.
    """
    if captions:
        widths = [panel.shape[2] for panel in panels]
        longest = max(panels[0].shape[1], *widths)
        factor = max(1, min(-(-READABLE // min(widths)), LONGEST // longest))
        panels = [panel.repeat_interleave(factor, 1).repeat_interleave(factor, 2) for panel in panels]
        panels = [
            torch.cat((_caption(text, panel.shape[2]), panel), dim=1)
            for text, panel in zip(captions, panels, strict=True)
        ]
    line = torch.ones(3, panels[0].shape[1], GAP)
    parts = [part for panel in panels for part in (line, panel)]
    return torch.cat(parts[1:], dim=2)


def class_legend(num_classes: int, width: int) -> torch.Tensor:
    """The colours of ``class_colours`` with their class numbers, on white strips (3, n * CAPTION, W)."""
    from PIL import Image, ImageDraw

    columns = max(1, width // ENTRY)
    colours = class_colours(max(1, num_classes - 1))
    strip = Image.new("RGB", (width, -(-len(colours) // columns) * CAPTION), "white")
    draw = ImageDraw.Draw(strip)
    for number, colour in enumerate(colours):
        row, column = divmod(number, columns)
        left, top = column * ENTRY + 2, row * CAPTION + 3
        draw.rectangle((left, top, left + SQUARE - 1, top + SQUARE - 1), fill=colour)
        draw.text((left + SQUARE + 2, row * CAPTION), str(number + 1), fill="black")
    return _pixels(strip)


def _caption(text: str, width: int) -> torch.Tensor:
    """Black words on a white strip (3, CAPTION, W)."""
    from PIL import Image, ImageDraw  # which TensorBoard's pictures need as well

    strip = Image.new("RGB", (width, CAPTION), "white")
    ImageDraw.Draw(strip).text((1, 0), text, fill="black")
    return _pixels(strip)


def _pixels(picture: Any) -> torch.Tensor:
    """A picture of PIL in RGB as (3, H, W) in 0..1."""
    values = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return values.view(picture.height, picture.width, 3).movedim(-1, 0) / 255
