"""Read NIfTI files in one way, for both the check of a datalist and loading, so they cannot differ."""

from __future__ import annotations

import gzip
import logging
import os
from typing import Any

import nibabel as nib
import numpy as np

from .files import NIFTI_ENDINGS
from .volumes import VolumeError, format_shape

__all__ = ["NiftiError", "is_nifti", "nifti_affine", "read_nifti"]

logger = logging.getLogger(__name__)

# In mm. Outside of it is no scan of a body, but a unit that was forgotten or a header that was never filled in.
VOXEL_SIZES = (0.002, 500.0)
MAX_SCALE_DIFFERENCE = 0.01  # of sform and pixdim, as a share: more than the rounding of writers

_UNITS = {1: ("metres", 1000.0), 3: ("microns", 0.001)}  # of NIfTI's xyzt_units -> its size in mm; all else is mm


class NiftiError(VolumeError):
    """A NIfTI file cannot be used."""


def is_nifti(file: str | os.PathLike) -> bool:
    """Whether a file has a NIfTI name, in small letters or capitals."""
    return os.fspath(file).lower().endswith(NIFTI_ENDINGS)


def read_nifti(file: str | os.PathLike, **kwargs: Any) -> Any:
    """Read an image with nibabel; a compressed file is read completely to check its checksum.

    Args:
        file: `.nii` or `.nii.gz`.
        kwargs: passed to `nibabel.load`.

    Raises:
        NiftiError: the checksum does not match the content.
        Exception: any error of nibabel, gzip or zlib for a file that is cut off or not a NIfTI file.
    """
    if not os.fspath(file).lower().endswith(".gz"):
        return nib.load(file, **kwargs)  # type: ignore[attr-defined]
    with open(file, "rb") as stream:
        compressed = stream.read()
    try:
        # nibabel stops behind the last voxel, before the checksum.
        content = gzip.decompress(compressed)
    except gzip.BadGzipFile as error:
        if str(error).startswith("Not a gzipped"):
            raise
        raise NiftiError(f"is damaged (checksum: {error})") from error
    image: Any = nib.load(file, **kwargs)  # type: ignore[attr-defined]
    return type(image).from_bytes(content)


def nifti_affine(file: str | os.PathLike, image: Any = None) -> np.ndarray:
    """The matrix from voxels to mm that the header's codes declare valid: sform, else qform, else the voxel sizes.

    Sizes in metres and microns become mm. If only the sform is valid, different voxel sizes (pixdim) are ignored.

    Args:
        file: the NIfTI file.
        image: the opened file, if the caller has it.

    Raises:
        NiftiError: the header has impossible voxel sizes, an impossible matrix or position of the first voxel, or two
            valid matrices of different scale; or the file holds colours or complex numbers.
    """
    if image is None:
        image = nib.load(file)  # type: ignore[attr-defined]
    if not isinstance(image, nib.Nifti1Image):  # type: ignore[attr-defined]
        raise NiftiError(f"is not a NIfTI image of voxels but a {type(image).__name__}")
    header = image.header
    first = getattr(image.dataobj, "offset", None)
    if first is not None and first < header.single_vox_offset:
        # nibabel takes 0 as it stands and makes voxels of the header, so that all others are moved.
        raise NiftiError(f"says that its voxels begin at byte {first} (vox_offset), which is in the header")
    dtype = header.get_data_dtype()
    if dtype.names:
        raise NiftiError(f"holds colours ({'/'.join(dtype.names)}), not one number per voxel; save it as gray values")
    if dtype.kind == "c":
        raise NiftiError("holds complex numbers; save the magnitude")
    sform, qform = int(header["sform_code"]) > 0, int(header["qform_code"]) > 0
    pixdim = _written_sizes(file, header)
    if not np.isfinite(pixdim).all():
        raise NiftiError(f"has voxel sizes (pixdim) that are not finite ({_sizes(pixdim)})")
    unit, size = _UNITS.get(int(header["xyzt_units"]) & 7, ("mm", 1.0))
    if qform or not sform:
        _check_sizes(pixdim, size, unit, "pixdim")
    try:
        affine = np.array(image.affine, float)
    except Exception as error:  # a quaternion of more than unit length
        raise NiftiError(f"has a qform that is not a rotation ({error})") from error
    if not np.isfinite(affine).all():
        raise NiftiError(f"has a matrix ({'sform' if sform else 'qform'}) that is not finite (NaN or infinite)")
    scale = np.linalg.norm(affine[:3, :3], axis=0)
    _check_sizes(scale, size, unit, "sform" if sform else "qform")
    # Of unit columns: 1 for axes at right angles, 0 where two of them are one.
    if abs(np.linalg.det(affine[:3, :3] / scale)) < 1e-3:
        raise NiftiError(f"has a matrix ({'sform' if sform else 'qform'}) that has no inverse: its axes span no volume")
    if sform and qform and (np.abs(scale / np.abs(pixdim) - 1) > MAX_SCALE_DIFFERENCE).any():
        raise NiftiError(
            f"has two valid matrices with different voxel sizes, sform {_sizes(scale)} and qform {_sizes(pixdim)}: set "
            "the code of the wrong one to 0"
        )
    affine[:3] *= size
    if not (sform or qform):
        _say_guessed(file)
    return affine


_told: list[str] = []
"""The file that was reported to have no orientation; one report serves for all."""


def _say_guessed(file: str | os.PathLike) -> None:
    if not _told:
        _told.append(os.fspath(file))
        logger.warning(
            "%s states no orientation (sform_code and qform_code are 0): its axes are taken to run to the left, to the "
            "front and up, so left and right may be exchanged. Set a code if you know how they run. Other such files "
            "are not named.",
            os.fspath(file),
        )


def _written_sizes(file: str | os.PathLike, header: Any) -> np.ndarray:
    """`pixdim` as stored in the file: nibabel changes 0 to 1 when it opens a file."""
    pixdim = np.array(header["pixdim"][1:4], float)
    if (pixdim == 1).any():
        with nib.openers.ImageOpener(os.fspath(file)) as stream:
            pixdim = np.array(type(header).from_fileobj(stream, check=False)["pixdim"][1:4], float)
    return np.abs(pixdim)


def _check_sizes(sizes: np.ndarray, unit_size: float, unit: str, where: str) -> None:
    low, high = VOXEL_SIZES
    if not ((sizes * unit_size >= low) & (sizes * unit_size <= high)).all():
        raise NiftiError(
            f"has voxels of {_sizes(sizes)} {unit} ({where}), but {low:g} to {high:g} mm are possible: correct the "
            "header (voxel sizes, xyzt_units)"
        )


def _sizes(sizes: np.ndarray) -> str:
    return format_shape([f"{x:.4g}" for x in sizes])  # type: ignore[misc]
