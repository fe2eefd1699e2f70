from __future__ import annotations

import functools
import logging
import os
import threading
import warnings
from collections.abc import Hashable, Mapping
from typing import Any

import nibabel as nib
import numpy as np
from monai.config import KeysCollection
from monai.transforms import LoadImaged

from ..dicom import DicomError
from ..nifti import is_nifti
from ..volumes import VolumeError, first_line
from .checked_readers import ArrayReader, MetaImageReader, NrrdReader
from .dicom_reader import DicomReader
from .nifti_reader import NiftiReader


class LoadVolumed(LoadImaged):
    """MONAI's `LoadImaged` with errors of one sentence that name the file and what is wrong with it.

    A folder is read as one DICOM series. Arguments are those of `monai.transforms.LoadImaged`.

    Raises:
        RuntimeError: a file is missing, empty, cut off, damaged or in an unknown format, or the files of one image do
            not fit together.
        DicomError: a folder holds no DICOM series, several of them, or one that is not a volume of evenly spaced
            slices.
    """

    def __init__(self, keys: KeysCollection, *args: Any, **kwargs: Any) -> None:
        # Of a decoder for GPUs that is not installed; pydicom has its own.
        logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader: nvImageCodec decoder plugin did not")
            super().__init__(keys, *args, **kwargs)
        if self._loader.auto_select:  # a reader that was asked for stays
            for reader in (ArrayReader(), MetaImageReader(), NrrdReader(), NiftiReader()):
                self.register(reader)
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
            problem = _file_problem(self._loader, file, reader)
            if problem:
                return f"{file} {problem}"
        try:
            self._loader(value, reader)
        except Exception as error:
            return f"{', '.join(map(os.fspath, files))} cannot be read as one image ({first_line(error)})"
        return None


def read_volume(file: str | os.PathLike) -> Any:
    """Load one file or DICOM folder as `LoadVolumed` does: channel first, a `MetaTensor` of float32.

    Raises:
        VolumeError: it cannot be read.
    """
    file = os.fspath(file)
    with _ONE_AT_A_TIME:  # readers remember their file
        loader = _loader()
        try:
            return loader(file)
        except DicomError as error:
            raise VolumeError(str(error).removeprefix(f"{file} ")) from error
        except Exception as error:
            raise VolumeError(_file_problem(loader, file) or first_line(error)) from error


_ONE_AT_A_TIME = threading.Lock()


@functools.cache
def _loader() -> Any:
    return LoadVolumed("volume", ensure_channel_first=True)._loader


def _file_problem(loader: Any, file: str, reader: Any = None) -> str | None:
    """Say what is wrong with a file that did not load, as the end of a sentence."""
    if not os.path.exists(file):
        return "does not exist"
    if os.path.isfile(file) and os.path.getsize(file) == 0:
        return "is empty (0 bytes)"
    try:
        loader(file, reader)
    except VolumeError as error:
        return str(error)
    except Exception as error:
        return f"cannot be read ({_reason(file, error)})"
    return None


def _reason(file: str, error: Exception) -> str:
    if is_nifti(file):  # nibabel's own words are plainer than the list of readers that were tried
        try:
            volume: Any = nib.load(file)
            np.asanyarray(volume.dataobj)
        except Exception as plainer:
            return first_line(plainer)
    return first_line(error)
