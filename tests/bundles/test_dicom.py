"""`inference.json` on DICOM series, NRRD and MHA, as on the NIfTI file of the same volume."""

from __future__ import annotations

import itk
import nibabel as nib
import numpy as np
import pytest

from common.checks import own_sentence

SHAPE = (36, 48, 32)
# Slices from right to left. Not oblique: there MONAI's Spacing takes one of two grids, by the rounding of the affine.
AFFINE = np.array([[0, 0, 3.5, -60], [-4.0, 0, 0, 70], [0, -4.0, 0, 55], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def volume():
    """Blobs of several intensities in noise, as whole numbers."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij"))
    blobs = sum(
        rng.uniform(100, 500) * np.exp(-8 * ((grid.T - rng.uniform(-0.6, 0.6, 3)) ** 2).sum(-1).T) for _ in "abcde"
    )
    return np.rint(blobs + rng.uniform(1, 60, SHAPE)).astype(np.int32)


@pytest.fixture
def infer(run_bundle, bundle, small_files, small_model, tmp_path):
    def run(*overlays: str, **overrides):
        overrides = {"datalist": "@dataset_dir", "dataset_dir": str(tmp_path / "data"), **overrides}
        return run_bundle(
            "inference.json",
            *small_files[bundle],
            *overlays,
            bundle=bundle,
            workflow_type="inference",
            model_path=str(small_model(bundle)),
            output_dir=str(tmp_path / "out"),
            **overrides,
        )

    return run


def write_others(folder, volume):
    """The volume as NIfTI, NRRD and MHA."""
    nib.save(nib.Nifti1Image(volume.astype(np.int16), AFFINE), folder / "scan.nii.gz")
    image = itk.image_from_array(np.ascontiguousarray(volume.T.astype(np.int16)))
    lps = np.diag([-1, -1, 1, 1]) @ AFFINE
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing)
    image.SetOrigin(lps[:3, 3])
    image.SetDirection(lps[:3, :3] / spacing)
    for suffix in ("nrrd", "mha"):
        itk.imwrite(image, str(folder / f"{suffix}.{suffix}"))


def on_grid(path):
    """A label map on the grid of `AFFINE`, whichever way its own axes run; each voxel by its place."""
    image = nib.load(path)
    index = np.indices(SHAPE).reshape(3, -1)
    places = np.linalg.solve(image.affine, AFFINE @ np.vstack([index, np.ones(index.shape[1])]))[:3]
    nearest = np.rint(places).astype(int)
    assert np.abs(places - nearest).max() < 1e-3
    return np.asarray(image.dataobj)[tuple(nearest)].reshape(SHAPE)


@pytest.mark.way("DICOM in")
def test_every_format_gives_the_same_label_map(infer, volume, write_series, tmp_path):
    data = tmp_path / "data"
    write_series(data / "1.2.840.1", volume, AFFINE)
    write_series(
        data / "1.2.840.2",
        volume[:, :, ::-1],
        AFFINE @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, SHAPE[2] - 1], [0, 0, 0, 1]]),
    )
    write_others(data, volume)
    infer("outputs/nifti.json")
    names = ("scan", "nrrd", "mha", "1.2.840.1", "1.2.840.2")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"{name}_seg.nii.gz" for name in names}
    maps = {name: on_grid(tmp_path / "out" / f"{name}_seg.nii.gz") for name in names}
    assert len(np.unique(maps["scan"])) > 2
    for name in names[1:]:
        assert np.array_equal(maps[name], maps["scan"]), name


@pytest.mark.way("DICOM SEG out")
def test_dicom_seg_has_the_voxels_of_the_nifti(infer, bundle, volume, write_series, tmp_path):
    pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed (extra dicom)")
    pytest.importorskip("highdicom", reason="highdicom is not installed (extra dicom)")
    files = write_series(tmp_path / "data", volume, AFFINE)
    infer()
    infer("outputs/dicom_seg.json")
    seg = pydicom.dcmread(tmp_path / "out" / "data_seg.dcm")
    assert [s.SegmentLabel for s in seg.SegmentSequence] == ["cortex", "subcortical grey matter", "white matter", "CSF"]
    assert {s.SegmentAlgorithmName for s in seg.SegmentSequence} == {bundle}
    place = {pydicom.dcmread(file, stop_before_pixels=True).SOPInstanceUID: k for k, file in enumerate(files)}
    labels = np.zeros(SHAPE, int)
    for frame, groups in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence, strict=True):
        source = groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        number = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        labels[:, :, place[source]][frame.T > 0] = number
    assert np.array_equal(labels, on_grid(tmp_path / "out" / "data_seg.nii.gz"))


@pytest.fixture
def sentence(infer):
    def run(*overlays, **overrides):
        with pytest.raises(Exception) as caught:
            infer(*overlays, **overrides)
        return own_sentence(caught.value)

    return run


@pytest.mark.way("bad files refused")
def test_spoilt_series_give_a_sentence_and_no_mask(sentence, volume, write_series, tmp_path):
    folder = tmp_path / "data" / "series"
    files = write_series(folder, volume, AFFINE)
    files[7].unlink()
    assert f"IM0006 and IM0008 in {folder} are 7 mm apart" in sentence()
    files[8].write_bytes(files[8].read_bytes()[:3000])
    assert f"{files[8]} is damaged or not a DICOM image" in sentence()
    files[8].unlink()
    write_series(tmp_path / "other", volume[:, :, :2], AFFINE)[0].rename(folder / "IM9000")
    assert f"{folder} holds images of 2 DICOM series" in sentence()
    assert sentence(dataset_dir=str(files[0])).startswith(f"{files[0]} is one DICOM file")
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").rglob("*seg*")) == []


def test_a_nifti_file_gets_no_dicom_seg(sentence, volume, tmp_path):
    pytest.importorskip("highdicom", reason="highdicom is not installed (extra dicom)")
    (tmp_path / "data").mkdir()
    write_others(tmp_path / "data", volume)
    text = sentence("outputs/dicom_seg.json")
    assert text.startswith(f"{tmp_path}/data/") and "is not the folder of a DICOM series" in text
