from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data.utils import AFFINE_TOL
from monai.networks.utils import to_norm_affine
from monai.transforms import Orientation
from monai.utils import TraceKeys
from torch.nn import functional as F

from ..gathered import drop_pages

__all__ = ["Resampling", "ScanGrid"]

SLAB_BYTES = 2**22
"""What the values of one slab may take: little beside a volume, and enough for each step to pay."""
LINES = 32
"""Lines beside one another that are computed at once, since torch multiplies small matrices in another order."""


class ScanGrid:
    """The way from the network's grid back to that of the scan's file, slab by slab.

    MONAI's ``Invertd`` takes a whole prediction back at once: for each voxel of the scan a float64 number a class and
    three coordinates. Here a slab of the scan at a time is made, in the same precision, of the part of the prediction
    that it needs.

    ``ScanGrid.of(image)`` reads the operations that a preprocessed image has noted. It is None where one of them is not
    known here: anything but orientations, pads, crops, pools, and one change of the spacing, trilinear.
    """

    def __init__(self, image: Any, way: _Way, turns: Sequence[np.ndarray]) -> None:
        self._image, self._way, self._turns = image, way, turns

    @classmethod
    def of(cls, image: Any) -> ScanGrid | None:
        operations = list(getattr(image, "applied_operations", ()) or ())
        turns = []
        while operations and operations[0][TraceKeys.CLASS_NAME] == "Orientation":
            turns.append(np.asarray(operations.pop(0)[TraceKeys.EXTRA_INFO]["original_affine"]))
        if image.ndim != 4:
            return None
        way = _Way(image.shape[1:], image.affine.double())
        return cls(image, way, turns) if all(map(way.undo, reversed(operations))) else None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the scan, in the order of axes that the slabs have."""
        return tuple(map(len, self._way.last))

    def slabs(self, scores: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        """Slabs of the scan along its first axis, and the probabilities in them, (K, rows, *others) in float32.

        Args:
            scores: (K, *network's grid); their softmax is resampled.
        """
        rows = max(1, SLAB_BYTES // (8 * len(scores) * self.shape[1] * self.shape[2]))
        for start in range(0, self.shape[0], rows):
            yield slice(start, min(start + rows, self.shape[0])), self._way.rows(scores, start, start + rows)
            drop_pages(scores)

    def turned(self, volume: torch.Tensor) -> Any:
        """A volume (C, *shape) of all slabs as the file has it, with the file's metadata."""
        made = type(self._image)(volume)
        made.meta = dict(self._image.meta)
        made.affine = self._way.affine
        for affine in reversed(self._turns):
            turn = Orientation(axcodes=nib.orientations.aff2axcodes(affine), labels=None)
            with turn.trace_transform(False):
                made = turn(made)
        return made


class _Way:
    """The operations, undone one by one: voxels by their number, a change of the spacing, voxels by their number.

    ``first`` has, for each axis of the grid before the spacing, the number of its voxels on the network's grid, -1
    where there is none; ``last`` those of the scan on the grid behind it. ``affine`` is that of the grid reached so
    far.
    """

    def __init__(self, shape: Sequence[int], affine: torch.Tensor) -> None:
        self.first = self.last = [torch.arange(size) for size in shape]
        self.spacing: Resampling | None = None
        self.affine = affine

    def undo(self, operation: Mapping[str, Any]) -> bool:
        """Whether the operation is known, and now undone."""
        info, name = operation[TraceKeys.EXTRA_INFO], operation[TraceKeys.CLASS_NAME]
        if "pad_info" in info and not self.undo(info["pad_info"]):
            return False
        if "crop_info" in info:
            return self.undo(info["crop_info"])
        if "padded" in info:
            ends = info["padded"]
            return not any(ends[0]) and self._shift([start for start, _ in ends[1:]], [-end for _, end in ends[1:]])
        if "cropped" in info:
            return self._shift([-start for start in info["cropped"][::2]], info["cropped"][1::2])
        if name == "SpatialResample":
            return self._resample(info, operation[TraceKeys.ORIG_SIZE])
        if name == "AveragePoold":
            return self._repeat(info["kernel_size"], operation[TraceKeys.ORIG_SIZE])
        return False

    def rows(self, scores: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Probabilities in some rows of the scan's first axis."""
        if self.spacing is None:
            return _picked(scores, [self.first[0][start:stop], *self.first[1:]], softmax=True)
        index = self.last[0][start:stop]
        inside = index[index >= 0]
        low, high = (int(inside.min()), int(inside.max()) + 1) if len(inside) else (0, 1)

        def read(begin: int, end: int) -> torch.Tensor:
            return _picked(scores, [self.first[0][begin:end], *self.first[1:]], softmax=True)

        made = self.spacing.rows(read, low, high)
        return _picked(made, [torch.where(index < 0, index, index - low), *self.last[1:]])

    def _set(self, axes: list[torch.Tensor]) -> None:
        self.last = axes
        if self.spacing is None:
            self.first = axes

    def _shift(self, starts: Sequence[int], ends: Sequence[int]) -> bool:
        """Begin at voxel ``starts`` (below 0: of a margin), end ``ends`` voxels behind the last one."""
        if len(starts) != 3:
            return False
        axes = []
        for axis, start, end in zip(self.last, starts, ends, strict=True):
            index = torch.arange(start, len(axis) + end)
            outside = (index < 0) | (index >= len(axis))
            axes.append(axis[index.clamp(0, len(axis) - 1)].masked_fill(outside, -1))
        self._set(axes)
        self._move(np.eye(3), starts)
        return True

    def _repeat(self, k: int, shape: Sequence[int]) -> bool:
        places = [torch.arange(size).div(k, rounding_mode="floor") for size in shape]
        self._set([axis[p.clamp(max=len(axis) - 1)] for axis, p in zip(self.last, places, strict=True)])
        self._move(np.eye(3) / k, [-(k - 1) / (2 * k)] * 3)
        return True

    def _move(self, matrix: np.ndarray, translation: Sequence[float]) -> None:
        move = np.eye(4)
        move[:3, :3], move[:3, 3] = matrix, translation
        self.affine = self.affine @ torch.as_tensor(move, dtype=torch.float64)

    def _resample(self, info: Mapping[str, Any], shape: Sequence[int]) -> bool:
        target = torch.as_tensor(np.asarray(info["src_affine"]), dtype=torch.float64)
        if target.shape != (4, 4):
            return False
        way = np.linalg.solve(self.affine.numpy(), target.numpy())
        same = tuple(shape) == tuple(map(len, self.last))
        pairs = ((self.affine, target), (way, np.eye(4)))
        if same and any(np.allclose(one, other, atol=AFFINE_TOL) for one, other in pairs):
            return True  # MONAI leaves the volume as it is, affine and all
        if (info["mode"], info["padding_mode"], info["dtype"]) != ("bilinear", "border", "float64"):
            return False
        if self.spacing is not None or info["align_corners"] not in (False, TraceKeys.NONE):
            return False
        self.spacing = Resampling(way, [len(axis) for axis in self.last], shape)
        self.affine = target
        self.last = [torch.arange(size) for size in shape]
        return True


def _picked(values: torch.Tensor, index: Sequence[torch.Tensor], softmax: bool = False) -> torch.Tensor:
    """Voxels of (K, *spatial) by their numbers along each axis, 0 where it is -1; of probabilities, if asked."""
    rows = index[0][index[0] >= 0]
    if not len(rows):
        return values.new_zeros(len(values), *map(len, index))
    low = int(rows.min())
    values = values[:, low : int(rows.max()) + 1]
    if softmax:
        values = values.float().softmax(0)
    places = [torch.where(index[0] < 0, index[0], index[0] - low), *index[1:]]
    for axis, place in enumerate(places, 1):
        begin = int(place[0])
        if begin >= 0 and torch.equal(place, torch.arange(begin, begin + len(place))):
            values = values.narrow(axis, begin, len(place))
            continue
        values = values.index_select(axis, place.clamp(min=0).to(values.device))
        outside = (place < 0).nonzero()[:, 0].to(values.device)
        values.index_fill_(axis, outside, 0)
    return values


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
        for axis, line in enumerate((first - low, *self.lines[1:]), 1):
            values = _along(values, line.to(values.device), axis)
        return values.float()

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


def _along(values: torch.Tensor, line: torch.Tensor, axis: int) -> torch.Tensor:
    """Values at places along one axis, linearly between two voxels."""
    low = line.floor()
    shape = [-1 if dimension == axis else 1 for dimension in range(values.ndim)]
    below, above = (low + 1 - line).view(shape), (line - low).view(shape)
    index = low.long()
    values = values.double()
    made = values.index_select(axis, index).mul_(below)
    return made.addcmul_(values.index_select(axis, (index + 1).clamp(max=values.shape[axis] - 1)), above)
