from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch.nn import functional as F

__all__ = ["AxialView"]


class AxialView:
    """Axial slices of volumes of one geometry as pictures: front on top, the patient's right side on the left.

    Pixels are square, whatever the voxels are, and the longer side has ``longest`` at most. An image of two dimensions
    is its only slice and drawn as numpy prints it, whatever the affine, since its plane may be any of the body.

    Args:
        affine: (4, 4), voxel to RAS coordinates in millimetres, as of a ``MetaTensor``; axes are taken for the nearest
            of the body's. None where nothing is known: then slices lie along the last axis, and voxels are cubes.
        longest: pixels of the longer side at most.

    ``view(volume (C, *spatial), index)`` returns a picture (C, H, W) in float32 on the CPU; ``nearest`` keeps class
    numbers what they are.
    """

    def __init__(self, affine: Any = None, longest: int = 192) -> None:
        self.longest = longest
        # A volume of unknown orientation is drawn as numpy prints it, which this orientation does.
        self.codes: tuple[str, ...] = ("P", "L", "S")
        self.spacing: tuple[float, ...] = (1.0, 1.0, 1.0)
        matrix = None if affine is None else np.asarray(torch.as_tensor(affine).cpu(), dtype=float)
        if matrix is not None and matrix.shape == (4, 4):
            codes = nib.orientations.aff2axcodes(matrix)
            if None not in codes:
                self.codes = codes
                self.spacing = tuple(float(size) for size in np.linalg.norm(matrix[:3, :3], axis=0))

    @property
    def axis(self) -> int:
        """The spatial axis along which the slices lie."""
        return next(n for n, code in enumerate(self.codes) if code in "SI")

    def fullest(self, mask: torch.Tensor) -> int | None:
        """Number of the slice with most voxels of a mask (*spatial); the middle one where the mask is empty."""
        if mask.ndim < 3:
            return None
        # In int32, which is four times as fast as torch's default here.
        counts = (mask != 0).sum(dim=[n for n in range(3) if n != self.axis], dtype=torch.int32)
        return int(counts.argmax()) if bool(counts.any()) else len(counts) // 2

    def __call__(self, volume: torch.Tensor, index: int | None = None, nearest: bool = False) -> torch.Tensor:
        """``index`` is the number of the slice, None for the middle one."""
        volume = volume.detach()
        if volume.ndim == 3:
            return self._fit(volume, (1.0, 1.0), nearest)
        axis = self.axis
        index = volume.shape[axis + 1] // 2 if index is None else index
        picture = volume.select(axis + 1, index)
        codes = [code for n, code in enumerate(self.codes) if n != axis]
        spacing = [size for n, size in enumerate(self.spacing) if n != axis]
        if codes[0] in "LR":
            picture, codes, spacing = picture.transpose(1, 2), codes[::-1], spacing[::-1]
        flipped = [n for n, code in enumerate(codes, start=1) if code in "AR"]
        return self._fit(picture.flip(flipped), spacing, nearest)

    def _fit(self, picture: torch.Tensor, spacing: Any, nearest: bool) -> torch.Tensor:
        picture = picture.as_subclass(torch.Tensor).float().cpu()
        sizes = [count * size / min(spacing) for count, size in zip(picture.shape[1:], spacing, strict=True)]
        scale = min(1.0, self.longest / max(sizes))
        target = [max(1, round(size * scale)) for size in sizes]
        if target == list(picture.shape[1:]):
            return picture
        if nearest:
            return F.interpolate(picture[None], target, mode="nearest-exact")[0]
        return F.interpolate(picture[None], target, mode="bilinear", antialias=True)[0]
