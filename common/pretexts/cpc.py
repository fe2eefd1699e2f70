from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..transforms import cut_tiles, pad_tiles
from .octants import OCTANTS, check_encoder_alone, octants

__all__ = ["CPC"]


class CPC(nn.Module):
    """What comes next? 3-D contrastive predictive coding (Taleb et al., NeurIPS 2020).

    The encoder sees the tiles of a lattice over the image one at a time. A convolutional network that looks back along
    the first axis computes a context for each cell from its own layer of cells and earlier layers; its view widens with
    distance (the paper's inverted pyramid). For each step, a linear map predicts from the context the code of the cell
    that many layers ahead. The loss compares it with the codes of all other cells of the batch
    (``common.losses.PredictedCodesLoss``).

    Args:
        encoder: any encoder of images of three axes; its file must hold no decoder.
        grid: tiles per axis.
        jitter: how many voxels smaller a tile is than its cell; each tile is cut at a random place in its cell, so
            neighbours do not touch.
        steps: how many layers ahead to predict.
        size: length of a code and a context.

    ``forward(image (B, C, *spatial))`` returns ``codes`` (B, T, size) of the cells in row-major order, ``predictions``
    (B, M, size), and ``predicted`` (B, M), the numbers of the predicted cells.

    Raises:
        ValueError: the encoder has a decoder, or no cell lies that many steps ahead; when called, the image is too
            small for grid and jitter.
    """

    def __init__(
        self,
        encoder: Any,
        grid: Sequence[int] = (4, 4, 4),
        jitter: int = 3,
        steps: Sequence[int] = (1, 2),
        size: int = 256,
    ) -> None:
        super().__init__()
        check_encoder_alone(encoder, "CPC")
        self.encoder, self.grid, self.jitter, self.steps = encoder, tuple(grid), jitter, tuple(steps)
        if not self.steps or not 1 <= min(self.steps) <= max(self.steps) < self.grid[0]:
            raise ValueError(
                f"steps must be between 1 and {self.grid[0] - 1} for a grid of {list(grid)}, not {list(steps)}."
            )
        self.code = nn.Linear(OCTANTS * encoder.channels[-1], size)
        self.context = nn.Sequential(LookBack(size), nn.ReLU(), LookBack(size))
        self.predict = nn.ModuleList(nn.Linear(size, size, bias=False) for _ in self.steps)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        count = math.prod(self.grid)
        cells = torch.arange(count, device=image.device)
        tiles = cut_tiles(image, self.grid, self.jitter, cells.expand(len(image), -1))
        vectors = octants(self.encoder, pad_tiles(tiles.flatten(0, 1), self.encoder.strides[-1]))
        codes = self.code(vectors).view(len(image), count, -1)
        context = self.context(codes.transpose(1, 2).unflatten(2, self.grid)).flatten(2).transpose(1, 2)
        layer = count // self.grid[0]
        predictions = [
            predict(context[:, : count - step * layer]) for step, predict in zip(self.steps, self.predict, strict=True)
        ]
        predicted = torch.cat([cells[step * layer :] for step in self.steps])
        return {
            "codes": codes,
            "predictions": torch.cat(predictions, 1),
            "predicted": predicted.expand(len(image), -1),
        }


class LookBack(nn.Module):
    """A 3 x 3 x 3 convolution that sees its own place and the two before it along the first axis."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.convolution = nn.Conv3d(size, size, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.convolution(F.pad(x, (1, 1, 1, 1, 2, 0)))
