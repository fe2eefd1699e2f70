from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .cube_group import CubeGroup, rot90_batch
from .grid_mask import random_cell_mask

__all__ = ["TokenViews", "cell_of_token", "noise_mask"]


class TokenViews:
    """Two views of each volume with tokens that can be matched: one is turned and flipped, the other masked.

    Each gets its own texture. :meth:`restore` brings a map of the first view back to the frame of the second
    ("rotate-and-restore"). Source: Hu et al., SimTROT, sections 3.2 and 3.3.

    Args:
        texture: augmentation of a batch that moves no voxel, such as :class:`RandomTexture`; None for none.
        axes: axes to turn and flip, as negative numbers; crops must have equal sizes along them. For two axes the draw
            is the published one: quarter turns, then at most one flip. For more axes it is uniform over the group. None
            turns nothing.
        mask_ratio: share of the second view's cells to replace with noise; 0 masks nothing.
        mask_size: voxels per axis of a cell.
        mask_noise: standard deviation of the noise.
        published_restore: bring the first view back as the published code does, which is wrong in 10 of its 12 draws:
            it undoes the turn before the flip, and flips axis 0, 1 or 2 of (C, D, H, W) where none, H or W was flipped.
            It needs the published draw, so two ``axes``.

    ``views(image (B, C, *spatial))`` returns both views and the numbers (B,) of what moved the first, for
    :meth:`restore`.

    Raises:
        ValueError: ``mask_ratio`` is below 0, or 1 or more; ``published_restore`` without two axes; when called, crops
            do not fit the axes, are smaller than a cell, or would be masked whole.
    """

    def __init__(
        self,
        texture: Callable[[torch.Tensor], torch.Tensor] | None = None,
        axes: Sequence[int] | None = (-2, -1),
        mask_ratio: float = 0.75,
        mask_size: Sequence[int] = (4, 8, 8),
        mask_noise: float = 0.1,
        published_restore: bool = False,
    ) -> None:
        if not 0 <= mask_ratio < 1:
            raise ValueError(f"mask_ratio must be at least 0 and below 1, not {mask_ratio}.")
        if published_restore and len(axes or ()) != 2:
            raise ValueError(f"published_restore undoes quarter turns of two axes: set two axes, not {axes}.")
        self.texture = texture
        self.group = CubeGroup(axes) if axes else None
        self.mask_ratio, self.mask_size, self.mask_noise = mask_ratio, tuple(mask_size), mask_noise
        self.published_restore = published_restore

    def __call__(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        first, second = (self.texture(image), self.texture(image)) if self.texture else (image, image)
        element = self.draw(len(image), image.device)
        if self.group:
            first = self.group.apply(first, self._of_group(element))
        return first, self.mask(second), element

    def mask(self, image: torch.Tensor) -> torch.Tensor:
        """The image (B, C, *spatial) with cells of noise, as in the second view."""
        if not self.mask_ratio:
            return image
        return noise_mask(image, self.mask_ratio, self.mask_size, self.mask_noise)[0]

    def draw(self, batch: int, device: torch.device) -> torch.Tensor:
        """Numbers of what moves each sample: elements of the group, the identity if nothing is turned.

        With ``published_restore`` they are ``4 * flip + turns``, since two draws can be one element and are undone in
        different ways.
        """
        if self.group is None:
            return torch.zeros(batch, dtype=torch.long, device=device)
        if len(self.group.axes) == 2:
            turns = torch.randint(4, (batch,), device=device)
            flip = torch.randint(3, (batch,), device=device)
            return 4 * flip + turns if self.published_restore else self.group.from_turns(turns, flip)
        return self.group.draw(batch, device)

    def _of_group(self, element: torch.Tensor) -> torch.Tensor:
        assert self.group is not None
        return self.group.from_turns(element % 4, element // 4) if self.published_restore else element

    def restore(self, map: torch.Tensor, element: torch.Tensor) -> torch.Tensor:
        """Bring a map (B, C, *grid) of the first view into the frame of the second."""
        if self.group is None:
            return map
        if not self.published_restore:
            return self.group.restore(map, element)
        back = rot90_batch(map, -element % 4, (self.group.axes[0], self.group.axes[1]))
        # All three flips of all samples, as a loop over samples would wait for the device.
        flipped = torch.stack([back.flip(axis) for axis in (1, 2, 3)])
        return flipped[element // 4, torch.arange(len(map), device=map.device)]


def noise_mask(
    image: torch.Tensor, ratio: float, cell: Sequence[int], noise: float = 0.1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Replace random cells of an image with Gaussian noise.

    Args:
        image: batch (B, C, *spatial).
        ratio: share of the cells, of each sample.
        cell: voxels per axis of a cell. If a side of the image is no multiple, the last cells reach beyond it, like the
            patches of an encoder that continues the image.
        noise: standard deviation.

    Returns:
        the image, and the mask (B, *spatial), true where voxels were replaced.

    Raises:
        ValueError: a cell and the image differ in their number of axes, the cell is larger, or no cell would be left.
    """
    size = image.shape[2:]
    if len(cell) != len(size) or any(not 1 <= side <= voxels for voxels, side in zip(size, cell, strict=True)):
        raise ValueError(
            f"images of {list(size)} voxels cannot be masked in cells of {list(cell)}: set mask_size to {len(size)} "
            "numbers, each no larger than the image, best a divisor of it."
        )
    cells = math.prod(math.ceil(voxels / side) for voxels, side in zip(size, cell, strict=True))
    if round(ratio * cells) == cells:
        raise ValueError(
            f"a mask_ratio of {ratio} masks every cell of an image ({cells} of {list(cell)} voxels), so nothing can be "
            "learnt: set a smaller mask_ratio or mask_size."
        )
    mask = random_cell_mask(len(image), size, cell, ratio, image.device)
    return torch.where(mask[:, None], torch.randn_like(image) * noise, image), mask


def cell_of_token(encoder: Any) -> list[int]:
    """Voxels per axis of mask cells, 4 along each axis of a token of the encoder's deepest map, so 64 in a token.

    Masks of cells of this size leave each token some voxels. Hu et al. (SimTROT) have it for nnFormer: cells of
    4 x 8 x 8 for tokens of 16 x 32 x 32 (Synapse), of 8 x 8 x 8 for 32 x 32 x 32 (brain tumours). Along an axis with
    fewer than 4 voxels in a token, a cell is one voxel.

    Args:
        encoder: any encoder; its ``strides`` are read.
    """
    return [max(1, step // 4) for step in encoder.strides[-1]]
