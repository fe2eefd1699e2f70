from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.config import DtypeLike, KeysCollection
from monai.data import FolderLayoutBase, NibabelWriter
from monai.transforms import SaveImaged
from monai.utils import convert_to_numpy, get_equivalent_dtype

from ..files import atomic_write, without_ending
from ..grids import grid_problem
from ..nifti import is_nifti, nifti_affine
from ..volumes import format_values
from .save_each import SaveEach

__all__ = ["SaveVolumed"]

PLACE = (
    *("sform_code", "srow_x", "srow_y", "srow_z", "xyzt_units"),
    *("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)
"""Fields of a NIfTI header that say where its voxels are, beside ``pixdim``."""
NIFTI_DTYPES = ("uint8", "int16", "uint16", "int32", "float32", "float64")
"""Types that readers of NIfTI know; nibabel writes none of 64-bit integers unasked, and ITK reads none of float16."""


class SaveVolumed(SaveEach, SaveImaged):
    """Write volumes as NIfTI, each completely or not at all.

    MONAI's ``SaveImaged`` reports any write error as "no suitable writer" and logs it. In the engines the run then ends
    as if nothing had happened, and the part written so far stays. Here a full disk or a folder without permission ends
    the run with the file's name, and a file gets its name only when it is complete. The class derives from
    ``SaveImaged`` so that MONAI Label, which writes its own files, skips it.

    A volume on the grid of its NIfTI image has that image's sform, qform and their codes: where these differ, programs
    disagree on which counts, and each must see both files in one place.

    Args:
        keys: volumes (C, *spatial) with their affine; their ``filename_or_obj`` names the image.
        folder_layout: names the files, as ``KeepFolderTree`` does, ending in ``.nii.gz`` or ``.nii``.
        output_dtype: type of the stored voxels. None takes uint8 where it holds every value, as for label maps of up to
            256 classes, else the volume's own type, or the next larger one that NIfTI readers know.
        allow_missing_keys: whether items may lack keys.

    Raises:
        OSError: a file cannot be written; names it.
        ValueError: the layout names another format, or ``output_dtype`` cannot hold the values.
    """

    def __init__(
        self,
        keys: KeysCollection,
        folder_layout: FolderLayoutBase,
        output_dtype: DtypeLike = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, folder_layout=folder_layout, allow_missing_keys=allow_missing_keys)
        self.folder_layout, self.output_dtype = folder_layout, output_dtype

    def _save(self, volume: Any) -> None:
        path = Path(self.folder_layout.filename(subject=volume.meta["filename_or_obj"]))
        if not is_nifti(path):
            raise ValueError(f"{path} is not a NIfTI path: set the layout's extension to .nii.gz.")
        values = convert_to_numpy(volume)
        writer = NibabelWriter(output_dtype=self._stored_dtype(values, path))
        writer.set_data_array(volume, channel_dim=0)
        writer.set_metadata(volume.meta, resample=False)
        # As NibabelWriter.write does, whose file would have to be read and written again to change its place.
        image: Any = writer.create_backend_obj(writer.data_obj, affine=writer.affine, dtype=writer.output_dtype)
        for set_form in (image.set_sform, image.set_qform):
            set_form(image.affine, code=1)
        image = _placed_as(image, volume.meta["filename_or_obj"])
        with atomic_write(path, suffix=path.name.removeprefix(without_ending(path.name))) as temporary:
            nib.save(image, temporary)

    def _stored_dtype(self, values: np.ndarray, path: Path) -> np.dtype:
        own = [values.dtype] * (values.dtype in NIFTI_DTYPES)
        asked = [np.uint8, *own, np.int32, np.float32] if self.output_dtype is None else [self.output_dtype]
        dtypes = [np.dtype(get_equivalent_dtype(dtype, np.ndarray)) for dtype in asked]
        for dtype in dtypes:
            lost = _lost(values, dtype)
            if not lost.size:
                return dtype
        raise ValueError(
            f"{path} cannot hold {format_values(lost)} as {dtypes[-1]}: set output_dtype to a type that can, or leave "
            "it out."
        )


def _placed_as(image: Any, source: Any) -> Any:
    """An image with the place of its source in every header field that states it, if that is NIfTI on the same grid."""
    if not isinstance(source, str | os.PathLike) or not (is_nifti(source) and os.path.isfile(source)):
        return image
    scan: Any = nib.load(source)
    if grid_problem(image.shape, image.affine, os.fspath(source), scan.shape, nifti_affine(source, scan)):
        return image
    placed = nib.Nifti1Image(image.dataobj, None, image.header)  # with an affine, nibabel would write that
    for field in PLACE:
        placed.header[field] = scan.header[field]
    placed.header["pixdim"][:4] = scan.header["pixdim"][:4]
    return placed


def _lost(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The values that a type cannot hold; a float may be rounded to one of fewer digits."""
    if values.dtype == dtype:
        return values[:0]
    with np.errstate(invalid="ignore", over="ignore"):
        stored = values.astype(dtype)
    if all(np.issubdtype(kind, np.inexact) for kind in (values.dtype, dtype)):
        return values[np.isfinite(values) & ~np.isfinite(stored)]
    return values[stored != values]
