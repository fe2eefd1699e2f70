from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch.nn import functional as F

__all__ = ["AxialView"]


class AxialView:
    """Axial slices of volumes with one geometry, as pictures: front at the top, the patient's right on the left.

    Pixels are square for any voxels, and the longer side has at most ``longest`` pixels. A two-dimensional image is its
    own only slice. It is drawn as numpy prints it, without the affine, since it may show any plane of the body.

    Args:
        affine: (4, 4), voxel to RAS coordinates in millimetres, as from a ``MetaTensor``; each axis is matched to the
            nearest body axis. None if unknown: slices then lie along the last axis, and voxels are cubes.
        longest: largest number of pixels of the longer side.

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
        """Number of the slice with most voxels of a mask (*spatial); the middle one if the mask is empty."""
        if mask.ndim < 3:
            return None
        # In int32, which is four times as fast as torch's default here.
        counts = (mask != 0).sum(dim=[n for n in range(3) if n != self.axis], dtype=torch.int32)
        return int(counts.argmax()) if bool(counts.any()) else len(counts) // 2

    def __call__(self, volume: torch.Tensor, index: int | None = None, nearest: bool = False) -> torch.Tensor:
        """Draw slice number ``index``; None draws the middle one."""
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
