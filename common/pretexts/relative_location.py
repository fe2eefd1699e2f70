from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..transforms import cut_tiles, pad_tiles
from .octants import OCTANTS, check_encoder_alone, octants

__all__ = ["RelativeLocation"]

GRID = (3, 3, 3)
MIDDLE = 13  # of the 27 cells, in row-major order


class RelativeLocation(nn.Module):
    """Where does one tile lie relative to another? 3-D relative patch location (Taleb et al., NeurIPS 2020).

    A lattice of 3 x 3 x 3 cells covers the image. The encoder sees the middle tile and one of the 26 others, each cut
    at a random place in its cell. Two layers predict from both which one it is.

    Args:
        encoder: any encoder of images of three axes; its file must hold no decoder.
        jitter: how many voxels smaller a tile is than its cell; 3 in the published code.
        hidden: units of the hidden layer.

    ``forward(image (B, C, *spatial))`` returns ``logits`` (B, 26), ``labels`` (B,), the number of the cell in row-major
    order without the middle one, and ``tiles`` (B, 2, C, *tile), the middle one first.

    Raises:
        ValueError: the encoder has a decoder; when called, the image is too small for the jitter.
    """

    def __init__(self, encoder: Any, jitter: int = 3, hidden: int = 512) -> None:
        super().__init__()
        check_encoder_alone(encoder, "RelativeLocation")
        self.encoder, self.jitter = encoder, jitter
        vector = 2 * OCTANTS * encoder.channels[-1]
        self.head = nn.Sequential(nn.Linear(vector, hidden), nn.ReLU(), nn.Linear(hidden, 26))

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        labels = torch.randint(26, (len(image),), device=image.device)
        which = torch.stack((torch.full_like(labels, MIDDLE), labels + (labels >= MIDDLE)), 1)
        tiles = cut_tiles(image, GRID, self.jitter, which)
        vectors = octants(self.encoder, pad_tiles(tiles.flatten(0, 1), self.encoder.strides[-1]))
        return {"logits": self.head(vectors.view(len(image), -1)), "labels": labels, "tiles": tiles}
