from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional as F

from ..interpolation import LINEAR
from .ranges import check_range, spacing_per_axis
from .synthetic_contrast import blur

__all__ = ["RandomFolds"]


class RandomFolds:
    """Add gyri and sulci to the smooth cortex of a template's label maps, for a batch on its device, each at random.

    The average of many brains has no folds: its cortex is a smooth sheet over a ball of white matter, and a network
    trained only on such maps finds smooth sheets in real scans, too. This transform pulls the labels along the normal
    of the brain's surface: inwards on a network of thin random sheets, which brings fluid and cortex in from outside,
    and outwards between the sheets. Only the labels named here change, and only into one another. The sheets lie where
    a band-limited Gaussian field is near zero. Random numbers come from torch's global generator of the device.

    Args:
        groups: the labels (cortex, white matter, fluid) of each side that folds, such as FreeSurfer's ``[[3, 2, 24],
            [42, 41, 24]]``. Fluid may be shared by the sides.
        spacing: voxel size of the label maps in mm, a number or one per axis.
        depth: range of the depth of the sulci, mm.
        outward: range of how far the ridges between them come out, mm.
        distance: range of the distance between sulci, mm.
        width: range of the width of a sulcus, as a share of the distance.

    ``fold(labels (B, 1, *spatial))`` returns label maps of the same shape and dtype.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[int]],
        spacing: float | Sequence[float] = 1.0,
        depth: Sequence[float] = (3.0, 12.0),
        outward: Sequence[float] = (0.0, 4.0),
        distance: Sequence[float] = (14.0, 28.0),
        width: Sequence[float] = (0.15, 0.45),
    ) -> None:
        if not groups or any(len(group) != 3 for group in groups):
            raise ValueError(f"groups must be a list of label triples (cortex, white matter, fluid), not {groups}.")
        for name, pair in {"depth": depth, "outward": outward, "distance": distance, "width": width}.items():
            check_range(name, pair)
        if not distance[0] > 0 or not width[0] > 0:
            raise ValueError(f"distance and width must be above 0, not {list(distance)} and {list(width)}.")
        self.groups, self.spacing = [tuple(group) for group in groups], spacing
        self.depth, self.outward, self.distance, self.width = (
            tuple(depth),
            tuple(outward),
            tuple(distance),
            tuple(width),
        )

    def __call__(self, labels: torch.Tensor) -> torch.Tensor:
        spacing = spacing_per_axis(self.spacing, labels.ndim - 2)
        return torch.stack([self.fold(one, spacing) for one in labels])

    def fold(self, labels: torch.Tensor, spacing: Sequence[float]) -> torch.Tensor:
        """One label map (1, *spatial), folded."""
        device, size = labels.device, labels.shape[1:]
        axes = len(size)
        solid = torch.tensor(sorted({label for group in self.groups for label in group[:2]}), device=device)
        # The normal points out of cortex and white matter, towards nuclei and ventricles, too; what would come from
        # those is no member and stays out.
        inside = torch.isin(labels, solid).float()
        smooth = blur(inside, [6.0 / s for s in spacing])[0]
        slopes = torch.gradient(smooth, spacing=[float(s) for s in spacing])
        normal = -torch.stack(slopes)
        normal = normal / normal.square().sum(0, keepdim=True).sqrt().clamp(min=2e-3)
        distance = self._between(self.distance, device)
        field = self._field(size, spacing, float(distance), device)
        width = self._between(self.width, device)
        sheets = torch.exp(-0.5 * (field / (math.pi / 2 * width)).square())  # 1 in the middle of a sulcus, 0 between
        depth, outward = self._between(self.depth, device), self._between(self.outward, device)
        pull = (sheets * (depth + outward) - outward) * normal  # in mm: where the label comes from
        lines = [torch.arange(n, device=device, dtype=torch.float32) for n in size]
        grid = torch.stack(torch.meshgrid(*lines, indexing="ij"))
        place = grid + pull / torch.tensor(spacing, device=device).view(-1, *[1] * axes)
        half = torch.tensor([max(n - 1, 1) / 2 for n in size], device=device).view(-1, *[1] * axes)
        place = (place / half - 1).flip(0).movedim(0, -1)
        source = F.grid_sample(
            labels[None].float(), place[None], mode="nearest", padding_mode="border", align_corners=True
        )
        source = source[0].to(labels.dtype)
        moves = torch.zeros_like(labels, dtype=torch.bool)
        for group in self.groups:  # each side by itself: none of its labels crosses to the other
            members = torch.tensor(group, device=device)
            moves |= torch.isin(labels, members) & torch.isin(source, members)
        return torch.where(moves, source, labels)

    def _field(
        self, size: Sequence[int], spacing: Sequence[float], distance: float, device: torch.device
    ) -> torch.Tensor:
        """Gaussian noise of unit variance whose zero sheets are about ``distance`` mm apart, (*size)."""
        coarse = [max(4, math.ceil(n * s * 2 / distance)) for n, s in zip(size, spacing, strict=True)]
        noise = torch.randn(1, 1, *coarse, device=device)
        field = F.interpolate(
            noise, tuple(size), mode="bicubic" if len(size) == 2 else LINEAR[len(size)], align_corners=True
        )
        field = blur(field[0], [distance / 8 / s for s in spacing])[0]
        return (field - field.mean()) / field.std().clamp(min=1e-6)

    def _between(self, pair: Sequence[float], device: torch.device) -> torch.Tensor:
        return pair[0] + (pair[1] - pair[0]) * torch.rand((), device=device)
