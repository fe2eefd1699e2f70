from __future__ import annotations

from collections.abc import Sequence

import torch

from .colours import class_colours

__all__ = ["grey_panel", "mask_panel", "side_by_side"]

ALPHA = 0.65
GAP = 2
CAPTION = 14


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
        captions: text above each panel; it is cut off at the panel's width.
    """
    if captions:
        panels = [
            torch.cat((_caption(text, panel.shape[2]), panel), dim=1)
            for text, panel in zip(captions, panels, strict=True)
        ]
    line = torch.ones(3, panels[0].shape[1], GAP)
    parts = [part for panel in panels for part in (line, panel)]
    return torch.cat(parts[1:], dim=2)


def _caption(text: str, width: int) -> torch.Tensor:
    """Black words on a white strip (3, CAPTION, W)."""
    from PIL import Image, ImageDraw  # which TensorBoard's pictures need as well

    strip = Image.new("L", (width, CAPTION), 255)
    ImageDraw.Draw(strip).text((1, 0), text, fill=0)
    return (
        torch.frombuffer(bytearray(strip.tobytes()), dtype=torch.uint8).view(1, CAPTION, width).expand(3, -1, -1) / 255
    )
