from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data.utils import AFFINE_TOL
from monai.transforms import Orientation
from monai.transforms.utils import scale_affine
from monai.utils import TraceKeys

from ..gathered import drop_pages
from .resampling import SLAB_BYTES, Averaging, Resampling

__all__ = ["ScanGrid"]


class ScanGrid:
    """The way from the network's grid back to that of the scan's file, slab by slab.

    MONAI's ``Invertd`` takes a whole prediction back at once: for each voxel of the scan a float64 number a class and
    three coordinates. Here a slab of the scan at a time is made, in the same precision, of the part of the prediction
    that it needs.

    ``ScanGrid.of(image)`` reads the operations that a preprocessed image has noted. It is None where one of them is not
    known here: anything but orientations, pads, crops, pools, and one change of the voxels: a trilinear spacing, or a
    size with the mode ``area``.
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
        self.spacing: Averaging | Resampling | None = None
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
        if name == "Resize":
            return self._resize(info, operation[TraceKeys.ORIG_SIZE])
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

    def _resize(self, info: Mapping[str, Any], shape: Sequence[int]) -> bool:
        size = [len(axis) for axis in self.last]
        if list(shape) == size:
            return True
        if self.spacing is not None or (info["mode"], info["dtype"], info["new_dim"]) != ("area", "float32", 0):
            return False
        self.spacing = Averaging(size, shape)
        scale = scale_affine(size, shape)
        self._move(scale[:3, :3], scale[:3, 3])
        self.last = [torch.arange(side) for side in shape]
        return True

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
