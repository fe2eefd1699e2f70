from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from .ranges import spacing_per_axis

__all__ = ["RandomStrip"]


class RandomStrip:
    """Strip the skull from label maps of heads, for a share of a batch's samples, each at random.

    The surroundings of the brain become label 0, as does fluid further from the brain than a random margin, since tools
    for skull stripping differ in how much fluid they leave. Fluid between folds and in the ventricles stays. The
    ``strip`` of ``SyntheticContrast`` only removes surroundings from the image. This transform changes the labels, so a
    network does not learn to find fluid where a scan is black. Random numbers come from torch's global generator of the
    device.

    Args:
        outside: labels around the organ, such as skull and scalp.
        fluid: labels of the fluid around it.
        share: probability that a sample is stripped.
        margin: the fluid left around the brain is between 0 and this thick, mm.
        closing: sulci up to twice this wide count as inside of the brain, mm.
        spacing: voxel size of the label maps in mm, a number or one per axis.

    ``strip(labels (B, 1, *spatial))`` returns label maps of the same shape and dtype.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        outside: Sequence[int],
        fluid: Sequence[int],
        share: float = 0.5,
        margin: float = 4.0,
        closing: float = 6.0,
        spacing: float | Sequence[float] = 1.0,
    ) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"share must be a probability between 0 and 1, not {share}.")
        if not margin >= 0 or not closing >= 0:
            raise ValueError(f"margin and closing must be 0 or more, not {margin} and {closing}.")
        self.outside, self.fluid = sorted(outside), sorted(fluid)
        self.share, self.margin, self.closing, self.spacing = share, margin, closing, spacing

    def __call__(self, labels: torch.Tensor) -> torch.Tensor:
        spacing = spacing_per_axis(self.spacing, labels.ndim - 2)
        chosen = torch.rand(len(labels), device=labels.device) < self.share
        margins = self.margin * torch.rand(len(labels), device=labels.device)
        return torch.stack(
            [
                self.strip(one, float(margin), spacing) if strip else one
                for one, strip, margin in zip(labels, chosen.tolist(), margins, strict=True)
            ]
        )

    def strip(self, labels: torch.Tensor, margin: float, spacing: Sequence[float]) -> torch.Tensor:
        """One label map (1, *spatial), cut to the brain and ``margin`` (mm) of fluid around it."""
        outside = torch.isin(labels, torch.tensor([0, *self.outside], device=labels.device))
        fluid = torch.isin(labels, torch.tensor(self.fluid, device=labels.device))
        radius = [round(self.closing / s) for s in spacing]
        closed = ~grow(~grow(~outside & ~fluid, radius), radius)
        loose = fluid & ~grow(closed, [round(margin / s) for s in spacing])
        # From outside, through fluid that is not kept: the middle of a wide ventricle is out of reach.
        reached = outside
        while True:
            further = reached | (grow(reached, [1] * len(spacing)) & loose)
            if torch.equal(further, reached):
                return labels.masked_fill(reached, 0)
            reached = further


def grow(mask: torch.Tensor, radius: Sequence[int]) -> torch.Tensor:
    """A mask (1, *spatial) with the box of ``radius`` voxels around each of its voxels."""
    grown = mask[None].float()
    pool = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[len(radius)]
    for axis, reach in enumerate(radius):
        if reach:
            sizes = [2 * reach + 1 if axis == other else 1 for other in range(len(radius))]
            grown = pool(grown, tuple(sizes), 1, tuple(size // 2 for size in sizes))
    return grown[0] > 0
