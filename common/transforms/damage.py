from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from .bezier import RandomBezier
from .grid_mask import random_cell_mask

__all__ = ["CellMask", "GenesisDamage", "shuffle_cells"]


class CellMask:
    """Blank random cells of a batch on its device, to train a dense network as a masked autoencoder.

    Args:
        ratio: share of the cells, of each sample: 0.75 in "Revisiting MAE Pre-Training for 3D Medical Image
            Segmentation" (Wald et al., CVPR 2025).
        size: voxels per axis of a cell. If a side of the image is no multiple of it, the last cells are cut.
        fill: value of blanked voxels; 0 is the mean of normalised images.

    ``mask(image (B, C, *spatial))`` returns the image and the mask (B, *spatial), true where it was blanked.

    Raises:
        ValueError: the ratio is not between 0 and 1, or (when called) cells and image differ in their number of axes.
    """

    def __init__(self, ratio: float = 0.75, size: Sequence[int] = (16, 16, 16), fill: float = 0.0) -> None:
        if not 0 < ratio < 1:
            raise ValueError(f"ratio must be between 0 and 1, not {ratio}.")
        self.ratio, self.size, self.fill = ratio, tuple(size), fill

    def __call__(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        spatial = image.shape[2:]
        if len(self.size) != len(spatial):
            raise ValueError(f"Images of {len(spatial)} axes cannot be masked in cells of {list(self.size)}.")
        mask = random_cell_mask(len(image), spatial, self.size, self.ratio, image.device)
        return image.masked_fill(mask[:, None], self.fill), mask


class GenesisDamage:
    """Damage images for Models Genesis to restore, for a batch on its device, each sample on its own.

    Source: Zhou et al., MICCAI 2019, section 2; numbers from the published code. The steps are, in its order: local
    shuffling of voxels, a random rising or falling curve of intensities, and either in-painting or out-painting.
    In-painting replaces up to 5 boxes of a sixth to a third of each side with noise; out-painting keeps up to 5 boxes
    of three to four sevenths and replaces the rest. The published code shuffles 10,000 random boxes one by one. Here
    all cells of a random lattice are shuffled together, which moves voxels as far. Intensities may have any range: each
    image is scaled by its least and largest value.

    Args:
        shuffle_prob, curve_prob, paint_prob: probability of each.
        outside_prob: share of the painted images that are painted outside.
        falling: share of the curves that fall.

    ``damage(image (B, C, *spatial))`` returns the damaged image, and the mask (B, *spatial) of painted voxels.
    """

    def __init__(
        self,
        shuffle_prob: float = 0.5,
        curve_prob: float = 0.9,
        paint_prob: float = 0.9,
        outside_prob: float = 0.8,
        falling: float = 0.5,
    ) -> None:
        self.shuffle_prob, self.curve_prob, self.paint_prob = shuffle_prob, curve_prob, paint_prob
        self.outside_prob = outside_prob
        self.curve = RandomBezier(falling, keep_background=False)  # as the published code

    def __call__(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        low, high = (torch.stack([f(one) for one in image]) for f in (torch.amin, torch.amax))
        shape = (-1, *[1] * (image.ndim - 1))
        low, span = low.view(shape), (high - low).clamp(min=1e-6).view(shape)
        # One draw of torch's generator decides the draws of boxes, which Python makes without waiting for the device.
        draw = random.Random(int(torch.randint(2**31, ())))
        unit = (image - low) / span
        unit = torch.stack([shuffle_cells(one, draw) if draw.random() < self.shuffle_prob else one for one in unit])
        curved = torch.tensor([draw.random() < self.curve_prob for _ in unit], device=image.device).view(shape)
        unit = torch.where(curved, self.curve(unit), unit)
        masks = [self.draw_mask(image.shape[2:], draw) for _ in unit]
        mask = torch.stack(masks).to(image.device)
        unit = torch.where(mask[:, None], torch.rand_like(unit), unit)
        return unit * span + low, mask

    def draw_mask(self, size: Sequence[int], draw: random.Random) -> torch.Tensor:
        """Voxels to paint, (*size)."""
        if draw.random() >= self.paint_prob:
            return torch.zeros(tuple(size), dtype=torch.bool)
        outside = draw.random() < self.outside_prob
        inside = torch.zeros(tuple(size), dtype=torch.bool)
        for number in range(5):
            # Out-painting keeps one box at least.
            if not (outside and number == 0) and draw.random() >= 0.95:
                break
            box = []
            for n in size:
                width = n - draw.randint(3 * n // 7, 4 * n // 7) if outside else draw.randint(n // 6, n // 3)
                margin = min(3, (n - width) // 2)
                start = draw.randint(margin, n - width - margin)
                box.append(slice(start, start + width))
            inside[tuple(box)] = True
        return ~inside if outside else inside


def shuffle_cells(image: torch.Tensor, draw: random.Random) -> torch.Tensor:
    """Shuffle the voxels of an image (C, *spatial) within the cells of a random lattice, all channels alike.

    A side of a cell is 1 to a tenth of the image's.
    """
    size = image.shape[1:]
    cell = torch.zeros(tuple(size), dtype=torch.long)
    for axis, n in enumerate(size):
        side = draw.randint(1, max(1, n // 10))
        place = (torch.arange(n) + draw.randrange(side)) // side
        cell = cell * (n + 1) + place.view([-1 if a == axis else 1 for a in range(len(size))])
    cell = cell.flatten().to(image.device)
    generator = torch.Generator(image.device).manual_seed(draw.randrange(2**31))
    order = torch.randperm(len(cell), device=image.device, generator=generator)
    # Voxels sorted by cell, once in random and once in their own order: the k-th of a cell goes to the k-th place.
    order = order[cell[order].argsort(stable=True)]
    moved = torch.empty_like(image).flatten(1)
    moved[:, cell.argsort(stable=True)] = image.flatten(1)[:, order]
    return moved.view_as(image)
