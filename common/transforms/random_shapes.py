from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from .random_deformation import smooth_noise
from .ranges import spacing_per_axis

__all__ = ["RandomShapes"]


class RandomShapes:
    """Label maps of random overlapping shapes, for a batch on its device, each drawn on its own.

    After the label ensembles of Anatomix (Dey et al., ICLR 2025, section 3): 20 to 40 shapes, with later ones on top.
    Two of three maps are cut to a foreground, a deformed sphere; half of those have an envelope, a rim on its surface.
    Dey et al. take the shapes from segmentations of 104 organs. Here they are drawn: superellipsoids (between an
    octahedron and a box, from plates to tubes) of random size, place and rotation, in smoothly bent space. So they need
    no data and contain no person's anatomy. Random numbers come from torch's global generator of the device.

    Args:
        count: least and largest number of shapes.
        radius: least and largest radius of a shape along each of its axes, as a share of the map's shortest side in mm;
            drawn uniformly on a logarithmic scale.
        bend: largest standard deviation of the bending, as a share of that side.
        foreground: probability of a foreground.
        envelope: probability that a foreground has an envelope.
        width: least and largest width of the envelope, in voxels along the axis with the smallest ones.
        spacing: voxel size in mm, a number or one per axis. Shapes have the same proportions in mm on any grid, so with
            thick slices they span few of these, and many voxels within a slice.

    ``shapes(like (B, *, *spatial))`` returns labels (B, 1, *spatial) from 0; the values mean nothing outside of their
    map. ``like`` only gives shape and device.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        count: Sequence[int] = (20, 40),
        radius: Sequence[float] = (0.08, 0.4),
        bend: float = 0.08,
        foreground: float = 2 / 3,
        envelope: float = 0.5,
        width: Sequence[float] = (2.0, 4.0),
        spacing: float | Sequence[float] = 1.0,
    ) -> None:
        for name, pair in {"count": count, "radius": radius, "width": width}.items():
            if len(pair) != 2 or not 0 < pair[0] <= pair[1]:
                raise ValueError(f"{name} must be a range of two numbers above 0, the lower first, not {list(pair)}.")
        for name, share in {"foreground": foreground, "envelope": envelope}.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must be a probability between 0 and 1, not {share}.")
        if not bend >= 0:
            raise ValueError(f"bend must be 0 or more, not {bend}.")
        self.count, self.radius, self.bend = tuple(count), tuple(radius), bend
        self.foreground, self.envelope, self.width = foreground, envelope, tuple(width)
        self.spacing = spacing

    def __call__(self, like: torch.Tensor) -> torch.Tensor:
        size, device, batch = like.shape[2:], like.device, len(like)
        axes = len(size)
        spacing = spacing_per_axis(self.spacing, axes)
        shortest = min(n * step for n, step in zip(size, spacing, strict=True))
        steps = [step / shortest for step in spacing]
        sides = [n * step for n, step in zip(size, steps, strict=True)]
        place = self.bent_space(batch, size, steps, device)
        count = torch.randint(int(self.count[0]), int(self.count[1]) + 1, (batch, 1), device=device)
        labels = torch.zeros(batch, math.prod(size), dtype=torch.long, device=device)
        for number in range(1, int(self.count[1]) + 1):
            low, high = (math.log(radius) for radius in self.radius)
            radius = (low + (high - low) * torch.rand(batch, axes, 1, device=device)).exp()
            # 1 is an octahedron, 2 an ellipsoid, from 4 on nearly a box.
            power = 1 + 4 * torch.rand(batch, 1, 1, device=device).square()
            centre = self.draw_centre(batch, sides, device)
            local = torch.bmm(random_turns(batch, axes, device), place - centre) / radius
            inside = (local.abs().clamp(max=4).pow(power).sum(1) < 1) & (number <= count)
            labels.masked_fill_(inside, number)
        masked = torch.rand(batch, 1, device=device) < self.foreground
        rimmed = masked & (torch.rand(batch, 1, device=device) < self.envelope)
        radius = 0.35 + 0.25 * torch.rand(batch, 1, device=device)
        distance = (place - 0.5 * self.draw_centre(batch, sides, device)).square().sum(1).sqrt() - radius
        width = self.width[0] + (self.width[1] - self.width[0]) * torch.rand(batch, 1, device=device)
        rim = rimmed & (distance.abs() < width * min(steps) / 2)
        labels = torch.where(masked, torch.where(distance < 0, labels + 1, 0), labels)
        labels = torch.where(rim, labels.amax(1, keepdim=True) + 1, labels)
        return labels.view(batch, 1, *size)

    def bent_space(self, batch: int, size: Sequence[int], steps: Sequence[float], device: torch.device) -> torch.Tensor:
        """Place of each voxel after bending, (B, axes, voxels), from the middle, in units of the shortest side."""
        axes = list(zip(size, steps, strict=True))
        lines = [(torch.arange(n, device=device, dtype=torch.float32) - (n - 1) / 2) * step for n, step in axes]
        place = torch.stack(torch.meshgrid(*lines, indexing="ij")).flatten(1)
        for knots in (3, 7):
            std = self.bend * torch.rand(batch, 1, 1, device=device) * 3 / knots
            lattice = [max(2, round(knots * n * step)) for n, step in axes]
            place = place + std * smooth_noise(batch, len(size), size, lattice, device).flatten(2)
        return place

    @staticmethod
    def draw_centre(batch: int, sides: Sequence[float], device: torch.device) -> torch.Tensor:
        """A place in a map of such sides (B, axes, 1), from its middle."""
        extent = torch.tensor(sides, device=device).view(1, -1, 1)
        return (torch.rand(batch, len(sides), 1, device=device) - 0.5) * extent


def random_turns(batch: int, axes: int, device: torch.device) -> torch.Tensor:
    """Orthogonal matrices (B, axes, axes), uniformly drawn."""
    q, r = torch.linalg.qr(torch.randn(batch, axes, axes, device=device))
    return q * r.diagonal(dim1=1, dim2=2).sign()[:, None]
