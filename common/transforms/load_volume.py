from __future__ import annotations

import os
import warnings
from collections.abc import Hashable, Mapping
from typing import Any

import nibabel as nib
import numpy as np
from monai.config import KeysCollection
from monai.transforms import LoadImaged

from ..dicom import DicomError
from ..nifti import NiftiError
from ..volumes import first_line
from .dicom_reader import DicomReader
from .nifti_reader import NiftiReader


class LoadVolumed(LoadImaged):
    """MONAI's `LoadImaged` whose failures are one sentence that names the file and what is wrong with it.

    A folder is read as one DICOM series. Arguments are those of `monai.transforms.LoadImaged`.

    Raises:
        RuntimeError: a file is missing, empty, cut off, damaged or in no format that a reader knows, or the files of
            one image do not fit together.
        DicomError: a folder holds no DICOM series, several, or one that is no volume of even slices.
    """

    def __init__(self, keys: KeysCollection, *args: Any, **kwargs: Any) -> None:
        with warnings.catch_warnings():  # of a decoder for GPUs that is not installed; pydicom has its own
            warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader: nvImageCodec decoder plugin did not")
            super().__init__(keys, *args, **kwargs)
        if self._loader.auto_select:  # a reader that was asked for stays
            self.register(NiftiReader())
        self.register(DicomReader())  # asked first, being the last

    def __call__(self, data: Mapping[Hashable, Any], reader: Any = None) -> dict[Hashable, Any]:
        if any(data.get(key) == "" for key in self.keys):
            # MONAI would look into the working folder.
            raise FileNotFoundError("The image that was asked for does not exist: MONAI Label has no such study.")
        try:
            return super().__call__(data, reader)
        except DicomError:
            raise
        except Exception as error:  # each reader has its own kinds
            # Only now, so that volumes that load are read once: which file is it?
            for key in self.keys:
                problem = self._problem(data.get(key), reader)
                if problem:
                    raise RuntimeError(f"{problem}; replace the file or take it out of the datalist.") from error
            raise

    def _problem(self, value: Any, reader: Any) -> str | None:
        files = [value] if isinstance(value, str | os.PathLike) else value
        if not isinstance(files, list | tuple) or not all(isinstance(f, str | os.PathLike) for f in files):
            return None
        for file in map(os.fspath, files):
            if not os.path.exists(file):
                return f"{file} does not exist"
            if os.path.isfile(file) and os.path.getsize(file) == 0:
                return f"{file} is empty (0 bytes)"
            try:
                self._loader(file, reader)
            except NiftiError as error:
                return f"{file} {error}"
            except Exception as error:
                return f"{file} cannot be read ({_reason(file, error)})"
        try:
            self._loader(value, reader)
        except Exception as error:
            return f"{', '.join(map(os.fspath, files))} cannot be read as one image ({first_line(error)})"
        return None


def _reason(file: str, error: Exception) -> str:
    if file.endswith((".nii", ".nii.gz")):  # nibabel's own words are plainer than the list of readers that were tried
        try:
            volume: Any = nib.load(file)
            np.asanyarray(volume.dataobj)
        except Exception as plainer:
            return first_line(plainer)
    return first_line(error)
