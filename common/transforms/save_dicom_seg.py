from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.data import FolderLayoutBase
from monai.utils import convert_to_numpy

from .. import __version__
from ..dicom import DicomError, find_series
from ..files import atomic_write
from ..volumes import format_shape, label_problem
from .save_each import SaveEach

__all__ = ["SaveDicomSegd"]

TISSUE = ("85756007", "SCT", "Tissue")
MANUFACTURER = "MONAI Transfer Bundles"
OTHER_OUTPUT = "write NIfTI instead, with the overlay outputs/nifti.json or without an overlay of outputs/"
MAX_SEGMENTS = 65535
"""Segment numbers are unsigned and have 16 bits (DICOM PS3.3, C.8.20.4)."""
MAX_OFFSET = 0.01
"""How far a voxel of the label map may lie from its source's, in parts of the smallest spacing."""


class SaveDicomSegd(SaveEach):
    """Write label maps of DICOM series as DICOM Segmentation objects that refer to the slices.

    The label map, shape (1, columns, rows, slices), must lie on the grid of its series, as after `Invertd`. Each class
    becomes a binary segment with the number of the class; frames without a voxel are left out. The object has the
    study, the patient and the frame of reference of its source, and marks the algorithm as automatic. `highdicom`
    writes it (extra `dicom`). Items pass through unchanged.

    Args:
        keys: label maps; their `filename_or_obj` is the folder of the series.
        folder_layout: names the files, as `KeepFolderTree(extension=".dcm")`.
        segment_names: class number -> name, 0 being the background.
        algorithm_name: such as the bundle's name; with the collection's version it identifies the algorithm.
        category, kind: property category and type of all segments (DICOM PS3.16, CID 7150 and 7151), each as code,
            coding scheme and meaning. The default is tissue, which fits the classes of any task; the name says which
            tissue.
        allow_missing_keys: whether items may lack keys.

    Raises:
        ImportError: `highdicom` is not installed; raised on construction.
        DicomError: the image was not a DICOM series, or its headers lack a field that the object must repeat.
        ValueError: `segment_names` has a gap, or more than the 65535 classes that a DICOM SEG can number; labels have
            no name, or lie on another grid than the series.
    """

    def __init__(
        self,
        keys: KeysCollection,
        folder_layout: FolderLayoutBase,
        segment_names: Mapping[int | str, str],
        algorithm_name: str,
        category: Sequence[str] = TISSUE,
        kind: Sequence[str] = TISSUE,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        try:
            import highdicom  # noqa: F401
        except ImportError as error:
            raise ImportError(
                "DICOM SEG is written with highdicom, which cannot be imported "
                f"({error}); run `pip install highdicom` (extra dicom), or {OTHER_OUTPUT}."
            ) from error
        self.folder_layout = folder_layout
        names = {int(number): str(name) for number, name in segment_names.items() if int(number) > 0}
        if sorted(names) != list(range(1, len(names) + 1)):
            raise ValueError(f"segment_names must name the classes 1, 2, ... without a gap, not {sorted(names)}.")
        if len(names) > MAX_SEGMENTS:
            raise ValueError(
                f"segment_names has {len(names)} classes, and a DICOM SEG holds up to {MAX_SEGMENTS}; {OTHER_OUTPUT}."
            )
        self.segment_names = [names[number] for number in sorted(names)]
        self.algorithm_name = algorithm_name
        self.category, self.kind = tuple(category), tuple(kind)

    def _save(self, volume: Any) -> None:
        source = str(volume.meta["filename_or_obj"])
        if not os.path.isdir(source):
            raise DicomError(f"{source} is not the folder of a DICOM series, which a DICOM SEG needs; {OTHER_OUTPUT}.")
        series = find_series(source)
        labels = convert_to_numpy(volume)
        problem = label_problem(labels, len(self.segment_names) + 1)
        if problem:
            raise ValueError(f"The label map of {source} {problem}; name its classes with segment_names.")
        if labels.shape != (1, *series.shape):
            shapes = f"{format_shape(labels.shape)}, its series {format_shape((1, *series.shape))}"
            raise ValueError(
                f"The label map of {source} has the shape {shapes}; take it back to the image's grid with Invertd."
            )
        corners = np.array([[*corner, 1] for corner in np.ndindex(2, 2, 2)]) * [*(n - 1 for n in series.shape), 1]
        offsets = np.linalg.norm(corners @ (np.asarray(volume.affine) - series.affine).T, axis=1)
        if offsets.max() > MAX_OFFSET * np.linalg.norm(series.affine[:3, :3], axis=0).min():
            raise ValueError(
                f"The label map of {source} lies up to {offsets.max():.3g} mm away from its series; take it back to "
                "the image's grid with Invertd."
            )
        frames = labels[0].astype(np.min_scalar_type(len(self.segment_names))).transpose(2, 1, 0)
        segmentation = self._segmentation(source, series.files, frames)
        with atomic_write(self.folder_layout.filename(subject=source)) as path:
            segmentation.save_as(path)

    def _segmentation(self, source: str, files: Sequence[str], frames: np.ndarray) -> Any:
        """`frames` of shape (slices, rows, columns), in the order of the files."""
        import highdicom
        import pydicom
        from pydicom.sr.coding import Code

        algorithm = highdicom.AlgorithmIdentificationSequence(
            name=self.algorithm_name,
            family=Code("123110", "DCM", "Artificial Intelligence"),
            version=__version__,
            source=MANUFACTURER,
        )
        segments = [
            highdicom.seg.SegmentDescription(
                segment_number=number,
                segment_label=name[:64],  # as long as the standard allows
                segmented_property_category=Code(*self.category),
                segmented_property_type=Code(*self.kind),
                algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
                algorithm_identification=algorithm,
            )
            for number, name in enumerate(self.segment_names, 1)
        ]
        slices = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
        try:
            return highdicom.seg.Segmentation(
                source_images=slices,
                pixel_array=frames,
                segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
                segment_descriptions=segments,
                series_instance_uid=highdicom.UID(),
                series_number=_series_number(slices[0]),
                sop_instance_uid=highdicom.UID(),
                instance_number=1,
                manufacturer=MANUFACTURER,
                manufacturer_model_name=self.algorithm_name,
                software_versions=__version__,
                device_serial_number="0",
                series_description=f"Segmentation, {self.algorithm_name}"[:64],
                content_label="SEGMENTATION",
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DicomError(
                f"A DICOM SEG cannot refer to {source}: {error}; complete the tags of its files, or {OTHER_OUTPUT}."
            ) from error


def _series_number(slice_: Any) -> int:
    """A number after those of the study, as far as one series can tell."""
    return max(int(getattr(slice_, "SeriesNumber", None) or 0), 0) + 1000
