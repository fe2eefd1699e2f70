from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..transforms import cut_tiles, distant_permutations, pad_tiles
from .octants import OCTANTS, check_encoder_alone, octants

__all__ = ["Jigsaw"]


class Jigsaw(nn.Module):
    """In which order are the tiles? 3-D jigsaw puzzles (Taleb et al., NeurIPS 2020).

    The tiles of a lattice over the image, each cut at a random place in its cell, are reordered by one of a fixed set
    of permutations. The encoder sees one tile at a time. One layer shortens the vector of each tile, and two more
    layers predict the permutation from all vectors in order.

    Args:
        encoder: any encoder of images of three axes; its file must hold no decoder.
        grid: tiles per axis.
        jitter: how many voxels smaller a tile is than its cell.
        permutations: size of the set (``common.transforms.distant_permutations``), the same in every run.
        features: length of a tile's vector.
        hidden: units of the hidden layer.

    ``forward(image (B, C, *spatial))`` returns ``logits`` (B, permutations), ``labels`` (B,), and ``tiles`` (B, T, C,
    *tile) in the order that the encoder saw: the p-th tile comes from cell ``self.orders[label, p]``, in row-major
    order.

    Raises:
        ValueError: the encoder has a decoder, or there are fewer permutations; when called, the image is too small for
            grid and jitter.
    """

    orders: torch.Tensor

    def __init__(
        self,
        encoder: Any,
        grid: Sequence[int] = (3, 3, 3),
        jitter: int = 3,
        permutations: int = 100,
        features: int = 64,
        hidden: int = 512,
    ) -> None:
        super().__init__()
        check_encoder_alone(encoder, "Jigsaw")
        self.encoder, self.grid, self.jitter = encoder, tuple(grid), jitter
        tiles = math.prod(self.grid)
        self.register_buffer("orders", distant_permutations(tiles, permutations), persistent=False)
        self.shorten = nn.Sequential(nn.Linear(OCTANTS * encoder.channels[-1], features), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(tiles * features, hidden), nn.ReLU(), nn.Linear(hidden, permutations))

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        labels = torch.randint(len(self.orders), (len(image),), device=image.device)
        tiles = cut_tiles(image, self.grid, self.jitter, self.orders[labels])
        vectors = octants(self.encoder, pad_tiles(tiles.flatten(0, 1), self.encoder.strides[-1]))
        return {"logits": self.head(self.shorten(vectors).view(len(image), -1)), "labels": labels, "tiles": tiles}
