"""The archive of `make pacs-demo`, without the server in front of it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def pacs():
    sys.path.insert(0, str(ROOT / "demo"))
    try:
        yield importlib.import_module("pacs")
    finally:
        sys.path.remove(str(ROOT / "demo"))
        for name in ("pacs", "label", "hostile_requests"):
            sys.modules.pop(name, None)


AFFINE = np.array([[-2.0, 0, 0, 30], [0, -1.5, 0, 20], [0, 0, 3, 10], [0, 0, 0, 1]])


def test_the_series_is_the_volume_and_the_archive_keeps_it(pacs, tmp_path):
    pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed (extra dicom)")
    from common.dicom import find_series

    volume = np.random.default_rng(0).integers(0, 2001, (9, 7, 5)).astype(np.int16)
    volume[0, 0, 0] = 2000
    nib.save(nib.Nifti1Image(volume, AFFINE), tmp_path / "scan.nii.gz")
    study, _ = pacs.write_study(tmp_path / "scan.nii.gz", tmp_path / "series", 1)
    series = find_series(tmp_path / "series")
    np.testing.assert_allclose(series.affine[:3, 3], (AFFINE @ [0, 0, 0, 1])[:3], atol=1e-4)
    stored = np.stack([pydicom.dcmread(file).pixel_array.T for file in series.files], -1)
    np.testing.assert_array_equal(stored, volume)

    if any("Orthanc" in what or "plug-in" in what for what in pacs.missing()):
        pytest.skip(f"no archive: {'; '.join(pacs.missing())}")
    with pacs.Archive(tmp_path / "orthanc") as archive:
        assert archive.url.startswith("http://127.0.0.1:")
        assert archive.store([Path(file) for file in series.files]) == 5
        assert archive.segmentations(study) == []
    assert archive.process.poll() is not None


def test_label_maps_are_laid_by_the_frames_positions(pacs, tmp_path):
    """A DICOM SEG of our own writing, whose frames need not come in the order of the slices."""
    pytest.importorskip("highdicom", reason="highdicom is not installed (extra dicom)")
    import pydicom
    from monai.data import MetaTensor

    from common.dicom import find_series
    from common.transforms import KeepFolderTree, SaveDicomSegd

    labels = np.zeros((9, 7, 5), np.uint8)
    labels[2:4, 1:3, 1:4], labels[5:8, 3:6, 2] = 1, 2
    nib.save(nib.Nifti1Image(labels.astype(np.int16) + 1, AFFINE), tmp_path / "scan.nii.gz")
    pacs.write_study(tmp_path / "scan.nii.gz", tmp_path / "series", 1)
    series = find_series(tmp_path / "series")
    pred = MetaTensor(labels[None], affine=series.affine, meta={"filename_or_obj": str(tmp_path / "series")})
    layout = KeepFolderTree(str(tmp_path / "out"), str(tmp_path), postfix="seg", extension=".dcm")
    SaveDicomSegd("pred", layout, {1: "one", 2: "two"}, "test")({"pred": pred})
    [file] = (tmp_path / "out").rglob("*.dcm")
    found = pacs.labels_of(pydicom.dcmread(file), labels.shape, series.affine)
    np.testing.assert_array_equal(found, labels)
