from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import itk
from monai.config import PathLike
from monai.data import ITKReader
from monai.utils import ensure_tuple

from ..dicom import DicomError, is_dicom, read_series

__all__ = ["DicomReader"]


class DicomReader(ITKReader):
    """MONAI's `ITKReader` for folders that each hold one DICOM series of evenly spaced slices and nothing else.

    `ITKReader` alone reads the first of several series with a warning, splits a series if its slices differ in
    thickness, and misplaces slices if one is missing. Arguments are those of `monai.data.ITKReader`. If several folders
    are given, each becomes a channel.
    """

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Whether a folder or a DICOM file is among the files."""
        return any(os.path.isdir(file) or is_dicom(file) for file in ensure_tuple(filename))

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> Any:
        """Read an ITK image, or a list of them.

        Raises:
            DicomError: the files in a folder do not form a volume, or a single DICOM file is given.
        """
        images = [self._read(os.fspath(file), **kwargs) for file in ensure_tuple(data)]
        return images if len(images) > 1 else images[0]

    def _read(self, file: str, **kwargs: Any) -> Any:
        if os.path.isdir(file):
            return read_series(file)
        if is_dicom(file):
            raise DicomError(f"{file} is one DICOM file; name the folder that holds the slices of its series.")
        return itk.imread(file, **self.kwargs | kwargs)
