"""Write volumes as DICOM series, for the archive demo, the experiments and the tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["write_series"]

EMPTY = ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber")


def write_series(
    folder: Path, volume: np.ndarray, affine: np.ndarray, tags: Mapping[str, Any] | None = None
) -> list[Path]:
    """Write one file per slice, in the order of the array's last axis. Works with pydicom 2.4 and later.

    Args:
        folder: output folder, made if it does not exist.
        volume: 16-bit integers, shape (columns, rows, slices).
        affine: from voxels to mm in NIfTI's coordinates; its columns are at right angles.
        tags: values for every slice, by DICOM keyword. ``Modality`` is MR (default) or CT. UIDs are drawn unless given.
            With a ``RescaleIntercept``, the stored values are the volume minus this number.

    Returns:
        the files.
    """
    from pydicom import Dataset, dcmwrite, uid
    from pydicom.dataset import FileDataset, FileMetaDataset

    tags = dict(tags or {})
    stored = np.asarray(volume) - int(tags.get("RescaleIntercept", 0))
    signed = bool(stored.min() < 0)
    stored = stored.astype(np.int16 if signed else np.uint16)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    shared = {
        "StudyInstanceUID": uid.generate_uid(),
        "SeriesInstanceUID": uid.generate_uid(),
        "FrameOfReferenceUID": uid.generate_uid(),
        "Modality": "MR",
        "SeriesNumber": 1,
        "PatientID": "nobody",
        "PatientName": "Nobody^At All",
        "ReferringPhysicianName": "",
        **dict.fromkeys(EMPTY, ""),
        "PixelSpacing": [_decimal(spacing[1]), _decimal(spacing[0])],
        "ImageOrientationPatient": [_decimal(v) for v in (lps[:3, :2] / spacing[:2]).T.ravel()],
        "SliceThickness": _decimal(spacing[2]),
        "Columns": stored.shape[0],
        "Rows": stored.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": int(signed),
        **tags,
    }
    folder.mkdir(parents=True, exist_ok=True)
    kind = {"MR": uid.MRImageStorage, "CT": uid.CTImageStorage}[shared["Modality"]]
    files = []
    for k in range(stored.shape[2]):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = uid.ExplicitVRLittleEndian, kind
        meta.MediaStorageSOPInstanceUID = uid.generate_uid()
        part = FileDataset(None, Dataset(), file_meta=meta, preamble=b"\0" * 128)
        part.SOPClassUID, part.SOPInstanceUID = kind, meta.MediaStorageSOPInstanceUID
        for keyword, value in shared.items():
            setattr(part, keyword, value)
        part.InstanceNumber = k + 1
        part.ImagePositionPatient = [_decimal(v) for v in lps[:3, 3] + k * lps[:3, 2]]
        part.PixelData = stored[:, :, k].T.tobytes()
        files.append(folder / f"IM{k:04d}")
        _save(dcmwrite, files[-1], part)
    return files


def _save(write: Any, file: Path, part: Any) -> None:
    try:
        write(file, part, enforce_file_format=True)
    except TypeError:  # pydicom 2.4, which MONAI Label pins, has the flag by its old name
        part.is_little_endian, part.is_implicit_VR = True, False
        write(file, part, write_like_original=False)


def _decimal(value: float) -> str:
    """Format a number for DICOM, in at most 16 characters."""
    return f"{value:.9g}"
