from __future__ import annotations

import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from common.dicom import DicomError, find_series
from common.transforms import KeepFolderTree, LoadVolumed, SaveDicomSegd

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed (extra dicom)")
pytest.importorskip("highdicom", reason="highdicom is not installed (extra dicom)")

SHAPE = (6, 7, 8)
NAMES = {0: "background", "1": "cortex", 2: "white matter", 3: "never there"}
VOLUME = np.random.default_rng(0).integers(0, 500, SHAPE)
LABELS = np.random.default_rng(1).integers(0, 3, SHAPE) * (np.arange(8) != 2)  # one slice without a voxel
DIRECTIONS = {
    "axial": np.diag([-1.0, -1.0, 1.0]),
    "reversed": np.diag([-1.0, -1.0, -1.0]),
    "sagittal": np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]], float),
    "oblique": np.array([[-0.8, 0.48, 0.36], [-0.6, -0.64, -0.48], [0, -0.6, 0.8]]),
}


def affine_of(name: str) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = DIRECTIONS[name] * [0.9, 1.1, 2.5]
    affine[:3, 3] = [30.5, -20.25, 11]
    return affine


def seg(tmp_path, **arguments):
    layout = KeepFolderTree(tmp_path / "out", tmp_path / "data", "seg", ".dcm")
    return SaveDicomSegd("pred", layout, NAMES, "a test", **arguments)


def on_the_grid_of(folder, labels, affine):
    """A label map as a network's prediction is after Invertd: on the series' own grid, found voxel by voxel."""
    image = LoadVolumed("image", ensure_channel_first=True)({"image": str(folder)})["image"]
    pred = torch.zeros_like(image)
    for index in np.ndindex(*labels.shape):
        place = np.rint(np.linalg.solve(image.affine.numpy(), affine @ [*index, 1])[:3]).astype(int)
        pred[(0, *place)] = float(labels[index])
    return pred


def decoded(path, shape, affine):
    """The label map of a DICOM SEG on a grid, from each frame's own position, and the slices that frames refer to."""
    file = pydicom.dcmread(path)
    shared = file.SharedFunctionalGroupsSequence[0]
    orientation = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    spacing = [float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing]
    frames = file.pixel_array.reshape(-1, file.Rows, file.Columns)
    labels, slices = np.zeros(shape, int), {}
    for frame, groups in zip(frames, file.PerFrameFunctionalGroupsSequence, strict=True):
        number = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        position = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        for row, column in np.argwhere(frame):
            lps = position + orientation[:3] * spacing[1] * column + orientation[3:] * spacing[0] * row
            place = np.linalg.solve(affine, [-lps[0], -lps[1], lps[2], 1])[:3]
            index = tuple(np.rint(place).astype(int))
            assert np.abs(place - index).max() < 1e-4 and labels[index] == 0
            labels[index] = number
        source = groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        slices[source] = tuple(position)
    return labels, slices, file


@pytest.mark.parametrize("name", DIRECTIONS)
def test_comes_back_voxel_for_voxel(tmp_path, write_series, name):
    affine = affine_of(name)
    folder = tmp_path / "data" / "patient" / "1.2.840.7"
    files = write_series(folder, VOLUME, affine)
    pred = on_the_grid_of(folder, LABELS, affine)
    item = {"pred": pred, "other": 1}
    assert seg(tmp_path)(item) == item
    labels, slices, _ = decoded(tmp_path / "out/patient/1.2.840.7_seg.dcm", SHAPE, affine)
    assert np.array_equal(labels, LABELS)
    headers = [pydicom.dcmread(file) for file in files]
    expected = {h.SOPInstanceUID: tuple(map(float, h.ImagePositionPatient)) for h in headers}
    del expected[headers[2].SOPInstanceUID]
    assert slices.keys() == expected.keys()
    np.testing.assert_allclose([slices[uid] for uid in expected], list(expected.values()), atol=1e-5)


@pytest.fixture
def series(tmp_path, write_series):
    folder = tmp_path / "data" / "series"
    files = write_series(folder, VOLUME, affine_of("axial"))
    return folder, files, on_the_grid_of(folder, LABELS, affine_of("axial"))


def test_says_what_it_is(tmp_path, series):
    _, files, pred = series
    kind = ("12738006", "SCT", "Brain")
    seg(tmp_path, kind=kind)({"pred": pred})
    file = pydicom.dcmread(tmp_path / "out/series_seg.dcm")
    source = pydicom.dcmread(files[0])
    for tag in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert file[tag].value == source[tag].value
    assert (file.Modality, file.SegmentationType, file.SOPClassUID.name) == ("SEG", "BINARY", "Segmentation Storage")
    assert file.SeriesInstanceUID != source.SeriesInstanceUID
    assert file.ReferencedSeriesSequence[0].SeriesInstanceUID == source.SeriesInstanceUID
    assert [(s.SegmentNumber, s.SegmentLabel) for s in file.SegmentSequence] == [
        (1, "cortex"),
        (2, "white matter"),
        (3, "never there"),
    ]
    segment = file.SegmentSequence[0]
    assert segment.SegmentAlgorithmType == "AUTOMATIC" and segment.SegmentAlgorithmName == "a test"
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == "12738006"
    assert segment.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Tissue"


def test_a_label_map_without_a_structure(tmp_path, series):
    folder, _, pred = series
    seg(tmp_path)({"pred": torch.zeros_like(pred)})
    file = pydicom.dcmread(tmp_path / "out/series_seg.dcm")
    assert not file.pixel_array.any() and len(file.SegmentSequence) == 3
    assert find_series(folder).shape == SHAPE


def test_labels_may_be_bytes(tmp_path, series):
    _, _, pred = series
    seg(tmp_path)({"pred": MetaTensor(pred.to(torch.uint8), meta=pred.meta)})
    labels, _, _ = decoded(tmp_path / "out/series_seg.dcm", SHAPE, affine_of("axial"))
    assert np.array_equal(labels, LABELS)


def test_labels_above_255_come_back(tmp_path, series):
    folder, _, _ = series
    labels = np.where(LABELS == 2, 300, LABELS)
    pred = on_the_grid_of(folder, labels, affine_of("axial"))
    names = {number: f"label {number}" for number in range(1, 301)}
    SaveDicomSegd("pred", KeepFolderTree(tmp_path / "out", tmp_path / "data", "seg", ".dcm"), names, "a test")(
        {"pred": pred}
    )
    found, _, _ = decoded(tmp_path / "out/series_seg.dcm", SHAPE, affine_of("axial"))
    assert np.array_equal(found, labels)


def test_more_classes_than_segments_can_be_numbered_are_refused(tmp_path):
    names = dict.fromkeys(range(65537), "one")
    with pytest.raises(ValueError, match="has 65536 classes, and a DICOM SEG holds up to 65535; write NIfTI instead"):
        SaveDicomSegd("pred", KeepFolderTree(tmp_path, tmp_path), names, "a test")


def moved(pred):
    affine = pred.affine.clone()
    affine[0, 3] += 1
    return MetaTensor(pred.as_tensor(), affine=affine, meta={"filename_or_obj": pred.meta["filename_or_obj"]})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: p + 3, r"series has labels outside 0 to 3 \(4, 5\); name its classes with segment_names"),
        (lambda p: p[:, 1:], "has the shape 1x5x7x8, its series 1x6x7x8; take it back"),
        (moved, "lies up to 1 mm away from its series"),
    ],
)
def test_another_grid_and_other_labels_are_refused(tmp_path, series, spoil, message):
    _, _, pred = series
    with pytest.raises(ValueError, match=message):
        seg(tmp_path)({"pred": spoil(pred)})
    assert list((tmp_path).rglob("*.dcm")) == []


def test_a_source_that_is_no_series_is_refused(tmp_path, series):
    path = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.float32), np.eye(4)), path)
    pred = LoadVolumed("pred", ensure_channel_first=True)({"pred": str(path)})
    with pytest.raises(DicomError, match=r"scan.nii.gz is not the folder of a DICOM series, .* outputs/nifti.json"):
        seg(tmp_path)(pred)


def test_what_the_headers_lack_is_said(tmp_path, series):
    folder, files, pred = series
    for file in files:
        dataset = pydicom.dcmread(file)
        del dataset.StudyInstanceUID
        dataset.save_as(file)
    with pytest.raises(DicomError, match=rf"A DICOM SEG cannot refer to {folder}: .*StudyInstanceUID"):
        seg(tmp_path)({"pred": pred})
    assert list((tmp_path / "out").rglob("*.dcm")) == []


def test_names_have_no_gap(tmp_path):
    with pytest.raises(ValueError, match=r"classes 1, 2, \.\.\. without a gap, not \[1, 3\]"):
        SaveDicomSegd("pred", KeepFolderTree(tmp_path, tmp_path), {1: "a", 3: "b"}, "a test")


def test_without_highdicom(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(ImportError, match=r"pip install highdicom` \(extra dicom\)"):
        seg(tmp_path)
