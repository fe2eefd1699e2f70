from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional as F

from ..interpolation import LINEAR
from .ranges import check_spacing

__all__ = ["RandomDeformation", "smooth_noise"]


class RandomDeformation:
    """Random affine map and smooth invertible deformation of label maps, for a batch on its device, one per sample.

    The spatial model of SynthSeg (Billot et al., Medical Image Analysis 2023, section 3.1.1): scaling, rotation and
    shearing about the middle of the volume, then a stationary velocity field, drawn on a coarse lattice and integrated
    by scaling and squaring. The defaults are those of the published generator. Labels are looked up by nearest
    neighbour, so no new label arises; voxels from outside of the map are 0. Random numbers come from torch's global
    generator of the device.

    Args:
        scaling: each axis is scaled by a factor between ``1 - scaling`` and ``1 + scaling``.
        rotation: largest angle about each axis, in degrees.
        shearing: largest shear of each axis along each other.
        translation: largest shift along each axis, in voxels.
        velocity: the standard deviation of the velocity field's knots is drawn between 0 and this, in mm, or in voxels
            without ``spacing``.
        knots: knots of the lattice for each voxel along an axis.
        size: voxels per axis of the result, which is a window at a random place of the map; None keeps the size of the
            map.
        flip_axis: spatial axis, from 0, along which half of the samples are mirrored; None mirrors none.
        sided: pairs of labels to swap in a mirrored sample, such as left and right hippocampus.
        spacing: mm per voxel and axis; rotations and shears are then those of the body, whatever the voxels' shape.
            None takes cubes of 1 mm.

    ``deform(labels (B, M, *spatial))`` moves the M label maps of a sample alike and returns a tensor (B, M, *size) of
    the same dtype. With an image (B, C, *spatial) as the second argument, it also moves the image alike, with linear
    interpolation, and returns both. ``swapped`` lists those of the M maps, from 0, whose labels ``sided`` means; None
    means all of them.

    Raises:
        ValueError: an argument is out of its range; when called, the map has another number of axes than ``size``.
    """

    def __init__(
        self,
        scaling: float = 0.2,
        rotation: float = 15.0,
        shearing: float = 0.012,
        translation: float = 0.0,
        velocity: float = 4.0,
        knots: float = 0.04,
        size: Sequence[int] | None = None,
        flip_axis: int | None = None,
        sided: Sequence[Sequence[int]] = (),
        spacing: Sequence[float] | None = None,
    ) -> None:
        if not 0 <= scaling < 1:
            raise ValueError(f"scaling must be between 0 and 1, not {scaling}.")
        for name, value in {"rotation": rotation, "shearing": shearing, "translation": translation}.items():
            if not value >= 0:
                raise ValueError(f"{name} is an upper limit and must be 0 or more, not {value}.")
        if not velocity >= 0 or not 0 < knots <= 1:
            raise ValueError(f"velocity must be 0 or more and knots between 0 and 1, not {velocity} and {knots}.")
        if any(len(pair) != 2 for pair in sided):
            raise ValueError(f"sided must be a list of pairs of labels, not {list(sided)}.")
        if spacing is not None:
            check_spacing(spacing)
        self.spacing = None if spacing is None else [float(size) for size in spacing]
        self.scaling, self.rotation, self.shearing = scaling, math.radians(rotation), shearing
        self.translation, self.velocity, self.knots = translation, velocity, knots
        self.size = tuple(size) if size is not None else None
        self.flip_axis, self.sided = flip_axis, [tuple(pair) for pair in sided]

    def __call__(
        self, labels: torch.Tensor, image: torch.Tensor | None = None, swapped: Sequence[int] | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        spatial = tuple(labels.shape[2:])
        if self.size and len(self.size) != len(spatial):
            raise ValueError(f"A label map of {list(spatial)} voxels cannot be cropped to {list(self.size)}: set size.")
        if self.spacing and len(self.spacing) != len(spatial):
            raise ValueError(
                f"A label map of {list(spatial)} voxels has no spacing {self.spacing}: give a number for each axis."
            )
        place, flipped = self.draw_places(len(labels), spatial, labels.device)
        moved = _look_up(labels.float(), place, "nearest").to(labels.dtype)
        if self.sided:
            if swapped is None:
                moved = self._swap_sides(moved, flipped)
            else:
                moved[:, list(swapped)] = self._swap_sides(moved[:, list(swapped)], flipped)
        if image is None:
            return moved
        return moved, _look_up(image, place.to(image.dtype), "bilinear")

    def draw_places(
        self, batch: int, spatial: Sequence[int], device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Source of each voxel (B, axes, *size), in voxels from the map's middle, and mirrored samples (B,)."""
        size, axes = self.size or tuple(spatial), len(spatial)
        room = torch.tensor([max(0, a - b) / 2 for a, b in zip(spatial, size, strict=True)], device=device)
        shift = (2 * torch.rand(batch, axes, device=device) - 1) * (room + self.translation)
        lines = [torch.arange(n, device=device, dtype=torch.float32) - (n - 1) / 2 for n in size]
        grid = torch.stack(torch.meshgrid(*lines, indexing="ij")) + _column(shift, axes)
        flipped = torch.zeros(batch, dtype=torch.bool, device=device)
        if self.flip_axis is not None:
            flipped = torch.rand(batch, device=device) < 0.5
            sign = torch.ones(batch, axes, device=device)
            sign[:, self.flip_axis] = torch.where(flipped, -1.0, 1.0)
            grid = grid * _column(sign, axes)
        place = torch.einsum("bij,bj...->bi...", self.draw_affine(batch, axes, device), grid)
        if self.velocity:
            place = place + self.draw_displacement(batch, size, device)
        return place, flipped

    def draw_affine(self, batch: int, axes: int, device: torch.device) -> torch.Tensor:
        """Random matrices (B, axes, axes) between places in voxels: scaling after shearing after rotation."""

        def draw(*shape: int) -> torch.Tensor:
            return 2 * torch.rand(batch, *shape, device=device) - 1

        eye = torch.eye(axes, device=device)
        shear = eye + self.shearing * draw(axes, axes) * (1 - eye)
        turn = eye.expand(batch, -1, -1)
        for i in range(axes):
            for j in range(i + 1, axes):
                angle = self.rotation * draw()
                plane = eye.repeat(batch, 1, 1)
                plane[:, i, i] = plane[:, j, j] = angle.cos()
                plane[:, i, j], plane[:, j, i] = -angle.sin(), angle.sin()
                turn = turn @ plane
        matrix = torch.diag_embed(1 + self.scaling * draw(axes)) @ shear @ turn
        voxels = torch.tensor(self.spacing or [1.0] * axes, device=device)
        return matrix * (voxels / voxels[:, None])

    def draw_displacement(self, batch: int, size: Sequence[int], device: torch.device) -> torch.Tensor:
        """Random displacements in voxels (B, axes, *size), smooth and invertible."""
        std = self.velocity * torch.rand(batch, 1, device=device)
        std = std / torch.tensor(self.spacing or [1.0] * len(size), device=device)
        # Half of the resolution is enough for a field that varies this slowly, and an eighth of the cost.
        coarse = [max(2, math.ceil(n / 2)) for n in size]
        ratio = torch.tensor([(m - 1) / max(n - 1, 1) for m, n in zip(coarse, size, strict=True)], device=device)
        velocity = smooth_noise(batch, len(size), coarse, [math.ceil(n * self.knots) for n in size], device)
        flow = integrate(velocity * _column(std * ratio, len(size)))
        flow = F.interpolate(flow, tuple(size), mode=LINEAR[len(size)], align_corners=True)
        return flow / ratio.view(1, -1, *[1] * len(size))

    def _swap_sides(self, labels: torch.Tensor, flipped: torch.Tensor) -> torch.Tensor:
        table = torch.arange(1 + max(int(labels.max()), *(max(pair) for pair in self.sided)), device=labels.device)
        left, right = torch.tensor(self.sided, device=labels.device).T
        table[left], table[right] = right, left
        mirrored = torch.where(labels < 0, labels, table[labels.clamp(min=0).long()].to(labels.dtype))
        return torch.where(flipped.view(-1, *[1] * (labels.ndim - 1)), mirrored, labels)


def integrate(velocity: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Displacement at time 1 of a stationary velocity field (B, axes, *size) in voxels, by scaling and squaring."""
    size = velocity.shape[2:]
    axes = len(size)
    half = torch.tensor([max(n - 1, 1) / 2 for n in size], device=velocity.device)
    lines = [torch.linspace(-1, 1, n, device=velocity.device) for n in size]
    identity = torch.stack(torch.meshgrid(*lines, indexing="ij"), -1).flip(-1)
    flow = velocity / 2**steps
    for _ in range(steps):
        place = identity + (flow / half.view(1, -1, *[1] * axes)).flip(1).movedim(1, -1)
        flow = flow + F.grid_sample(flow, place, mode="bilinear", padding_mode="border", align_corners=True)
    return flow


def smooth_noise(
    batch: int, channels: int, size: Sequence[int], knots: Sequence[int], device: torch.device
) -> torch.Tensor:
    """Gaussian noise at the knots of a coarse lattice, interpolated linearly: (B, channels, *size)."""
    lattice = torch.randn(batch, channels, *(max(2, k) for k in knots), device=device)
    return F.interpolate(lattice, tuple(size), mode=LINEAR[len(size)], align_corners=True)


def _look_up(volume: torch.Tensor, place: torch.Tensor, mode: str) -> torch.Tensor:
    """Sample a volume (B, C, *spatial) at places (B, axes, *size) in voxels from its middle; 0 outside of it."""
    axes = place.shape[1]
    # grid_sample counts axes from the last and takes -1 and 1 for the middles of the first and last voxel.
    half = torch.tensor([max(n - 1, 1) / 2 for n in volume.shape[2:]], device=place.device)
    place = (place / half.view(1, -1, *[1] * axes)).flip(1).movedim(1, -1)
    return F.grid_sample(volume, place, mode=mode, padding_mode="zeros", align_corners=True)


def _column(value: torch.Tensor, axes: int) -> torch.Tensor:
    """A vector per sample (B, N) as (B, N, 1, ...)."""
    return value.view(*value.shape, *[1] * axes)
