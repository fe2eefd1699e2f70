"""NIfTI files as both the check of a datalist and loading read them, so that they cannot differ."""

from __future__ import annotations

import gzip
import os
from typing import Any

import nibabel as nib

__all__ = ["NiftiError", "is_nifti", "read_nifti"]


class NiftiError(ValueError):
    """A NIfTI file cannot be used; the message is the end of a sentence that begins with the file."""


def is_nifti(file: str | os.PathLike) -> bool:
    """Whether a file is NIfTI by its name."""
    return os.fspath(file).endswith((".nii", ".nii.gz"))


def read_nifti(file: str | os.PathLike, **kwargs: Any) -> Any:
    """The image of nibabel; of a compressed file all of it is read, so that its checksum is compared.

    Args:
        file: `.nii` or `.nii.gz`.
        kwargs: of `nibabel.load`.

    Raises:
        NiftiError: the checksum does not fit what was read.
        Exception: whatever nibabel, gzip and zlib raise about a file that is cut off or no NIfTI file.
    """
    if not os.fspath(file).endswith(".gz"):
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
