from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from monai.config import PathLike
from monai.data import NibabelReader
from monai.data.utils import correct_nifti_header_if_necessary
from monai.utils import ensure_tuple

from ..nifti import is_nifti, read_nifti

__all__ = ["NiftiReader"]


class NiftiReader(NibabelReader):
    """MONAI's `NibabelReader` that compares the checksum of compressed files. Arguments are the same."""

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Whether all files are NIfTI by their names."""
        return all(is_nifti(file) for file in ensure_tuple(filename))

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> Any:
        """An image of nibabel, or a list of them.

        Raises:
            NiftiError: a file is damaged.
        """
        self.filenames = ensure_tuple(data)
        images = [
            correct_nifti_header_if_necessary(read_nifti(file, **self.kwargs | kwargs)) for file in self.filenames
        ]
        return images if len(images) > 1 else images[0]
