from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from monai.config import PathLike
from monai.data import NibabelReader
from monai.utils import ensure_tuple

from ..nifti import NiftiError, is_nifti, nifti_affine, read_nifti
from ..volumes import format_shape

__all__ = ["NiftiReader"]


class NiftiReader(NibabelReader):
    """MONAI's `NibabelReader` with the geometry of `common.nifti` and a check of checksums; same arguments.

    `NibabelReader` alone uses the qform, valid or not, if the scale of the sform differs from the voxel sizes.
    """

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Whether all files have a NIfTI name."""
        return all(is_nifti(file) for file in ensure_tuple(filename))

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> Any:
        """Read an image of nibabel, or a list of them.

        Raises:
            NiftiError: a file is damaged, or its header is impossible.
        """
        self.filenames = ensure_tuple(data)
        options = self.kwargs | kwargs
        images = [_settled(file, read_nifti(file, **options)) for file in map(os.fspath, self.filenames)]
        return images if len(images) > 1 else images[0]


def _settled(file: str, image: Any) -> Any:
    """The image with one geometry, in mm, in all fields of its header."""
    affine = nifti_affine(file, image)
    if image.ndim < 3:
        raise NiftiError(f"has {image.ndim} axes ({format_shape(image.shape)}), but a volume has 3")
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.array_equal(affine, image.affine):  # another unit
        image = type(image)(image.dataobj, affine, image.header)
        image.header.set_xyzt_units("mm")
    image.header.set_zooms((*sizes, *image.header.get_zooms()[3:]))
    return image
