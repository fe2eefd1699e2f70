from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from monai.networks.utils import to_norm_affine
from torch.nn import functional as F

__all__ = ["Averaging", "Resampling"]

SLAB_BYTES = 2**22
"""What the values of one slab may take: little beside a volume, and enough for each step to pay."""
LINES = 32
"""Lines beside one another that are computed at once, since torch multiplies small matrices in another order."""


class Resampling:
    """MONAI's trilinear ``SpatialResample`` in float64, some rows of its result at a time.

    Its coordinates are those of MONAI to the bit wherever axes stay parallel: at the edge of a crop, where
    probabilities are 0 on one side, their rounding decides which class is the largest.

    Args:
        way: (4, 4), from voxel numbers of the result to those of the volume, beyond which its last voxels stand.
        size: of the volume.
        shape: of the result.
    """

    def __init__(self, way: np.ndarray, size: Sequence[int], shape: Sequence[int]) -> None:
        self.way, self.size, self.shape = way, tuple(size), tuple(shape)
        theta = to_norm_affine(torch.as_tensor(way)[None], size, shape, align_corners=False)
        theta = theta[0, [2, 1, 0, 3]][:, [2, 1, 0, 3]][:3]  # grid_sample counts from the last axis
        self.lines: list[torch.Tensor] | None = None
        if not bool(theta[:, :3].masked_fill(torch.eye(3, dtype=torch.bool), 0).any()):
            self.lines = [self._line(theta, axis) for axis in range(3)]

    def _line(self, theta: torch.Tensor, axis: int) -> torch.Tensor:
        """Where the voxels of the result lie along one axis of the volume."""
        shape = [LINES] * 3
        shape[axis] = self.shape[axis]
        grid = F.affine_grid(theta[None], [1, 1, *shape], align_corners=False)[0]
        line = grid.select(3, 2 - axis).movedim(axis, 0)[:, 0, 0]
        return (((line + 1) * self.size[axis] - 1) / 2).clamp(0, self.size[axis] - 1)

    def rows(self, read: Callable[[int, int], torch.Tensor], start: int, stop: int) -> torch.Tensor:
        """Rows of the result along the first axis, (K, rows, *others) in float32.

        Args:
            read: ``read(low, high)`` returns rows of the volume (K, rows, *others).
        """
        axes = [np.arange(start, stop), *(np.arange(side) for side in self.shape[1:])]
        if self.lines is None:
            return self._slanted(read, axes)
        first = self.lines[0][start:stop]
        low = int(first.min())
        values = read(low, min(int(first.max()) + 2, self.size[0]))
        steps = [_neighbours(line, values.device) for line in (first - low, *self.lines[1:])]
        made = values.new_zeros(
            len(values), *(len(line) for line, _ in (step[0] for step in steps)), dtype=torch.double
        )
        for row, row_weight in steps[0]:  # the eight neighbours in the order of grid_sample, each rounded as there
            rows = values.index_select(1, row.clamp(max=values.shape[1] - 1))
            for column, column_weight in steps[1]:
                columns = rows.index_select(2, column.clamp(max=values.shape[2] - 1))
                for place, weight in steps[2]:
                    part = columns.index_select(3, place.clamp(max=values.shape[3] - 1)).double()
                    made += part.mul_(weight * column_weight[:, None] * row_weight[:, None, None])
        return made.float()

    def _slanted(self, read: Callable[[int, int], torch.Tensor], axes: Sequence[np.ndarray]) -> torch.Tensor:
        way, size = self.way, self.size
        corners = np.array(np.meshgrid(*([axis[0], axis[-1]] for axis in axes))).reshape(3, -1)
        reach = np.clip(way[0, :3] @ corners + way[0, 3], 0, size[0] - 1)
        low, high = int(np.floor(reach.min())), int(np.ceil(reach.max())) + 1
        values = read(low, high).double()
        made = [torch.as_tensor(axis, dtype=torch.float64, device=values.device) for axis in axes]
        places = []
        for number in (2, 1, 0):
            x, y, z = (way[number, other] * axis for other, axis in enumerate(made))
            place = (x[:, None, None] + y[None, :, None] + z + way[number, 3]).clamp_(0, size[number] - 1)
            place -= low if number == 0 else 0
            sides = values.shape[number + 1] - 1
            places.append(place.mul_(2 / sides).sub_(1) if sides else place.zero_())
        grid = torch.stack(places, -1)
        del places
        return F.grid_sample(values[None], grid[None], "bilinear", "border", align_corners=True)[0].float()


class Averaging:
    """MONAI's ``Resize`` with the mode ``area``, some rows of its result at a time, in its order of sums.

    Args:
        size: of the volume.
        shape: of the result, each voxel of which is the mean of the voxels that it overlaps.
    """

    def __init__(self, size: Sequence[int], shape: Sequence[int]) -> None:
        self.cells: list[tuple[torch.Tensor, torch.Tensor]] = []
        for side, made in zip(size, shape, strict=True):
            places = torch.arange(made) * side
            ends = (places + side + made - 1).div(made, rounding_mode="floor")
            self.cells.append((places.div(made, rounding_mode="floor"), ends))

    def rows(self, read: Callable[[int, int], torch.Tensor], start: int, stop: int) -> torch.Tensor:
        """As those of ``Resampling``."""
        begins, ends = (line[start:stop] for line in self.cells[0])
        low = int(begins[0])
        values = read(low, int(ends[-1])).float()
        cells = [
            (begin.to(values.device), end.to(values.device))
            for begin, end in ((begins - low, ends - low), *self.cells[1:])
        ]
        made: torch.Tensor | int = 0
        for rows, inside in _members(*cells[0]):
            part = values.index_select(1, rows)
            for columns, within in _members(*cells[1]):
                line = part.index_select(2, columns)
                for places, there in _members(*cells[2]):
                    weight = inside[:, None, None] & within[:, None] & there
                    made = line.index_select(3, places).mul_(weight) + made
        assert isinstance(made, torch.Tensor)
        for axis, (begin, end) in enumerate(cells):
            made /= (end - begin).view([-1 if other == axis else 1 for other in range(3)])
        return made


def _members(begins: torch.Tensor, ends: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The first, second, ... voxel of all cells along an axis, and which cells have one."""
    for step in range(int((ends - begins).max())):
        yield torch.minimum(begins + step, ends - 1), begins + step < ends


Neighbour = tuple[torch.Tensor, torch.Tensor]


def _neighbours(line: torch.Tensor, device: torch.device) -> tuple[Neighbour, Neighbour]:
    """The voxels below and above places along an axis, with their weights."""
    line = line.to(device)
    low = line.floor()
    index = low.long()
    return (index, low + 1 - line), (index + 1, line - low)
