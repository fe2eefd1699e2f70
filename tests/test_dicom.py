from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from common.data import list_images
from common.dicom import DicomError, dicom_files, find_series, holds_dicom, is_dicom
from common.transforms import LoadVolumed

SHAPE = (5, 6, 7)
VOLUME = np.random.default_rng(0).integers(-1000, 3000, SHAPE)


def rotation(angle: float, axis: int) -> np.ndarray:
    turn = np.eye(3)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
    return turn


# Directions of columns, rows and slices of the array in right-anterior-superior coordinates.
DIRECTIONS = {
    "axial": np.diag([-1.0, -1.0, 1.0]),
    "from the head down": np.diag([-1.0, -1.0, -1.0]),
    "mirrored": np.diag([1.0, -1.0, 1.0]),
    "sagittal": np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]], float),
    "coronal": np.array([[-1, 0, 0], [0, 0, -1], [0, -1, 0]], float),
    "oblique": rotation(0.3, 0) @ rotation(-0.5, 1) @ rotation(0.2, 2) @ np.diag([-1.0, -1.0, 1.0]),
}


def affine_of(name: str) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = DIRECTIONS[name] * [0.9, 1.1, 2.5]
    affine[:3, 3] = [30.5, -20.25, 11]
    return affine


def same_world(array: np.ndarray, affine: np.ndarray, other: np.ndarray, other_affine: np.ndarray) -> None:
    """Every voxel lies at the place, and has the value, of one of the other image; found by hand, voxel by voxel."""
    for index in np.ndindex(*other.shape):
        place = other_affine @ [*index, 1]
        there = np.linalg.solve(affine, place)[:3]
        nearest = np.rint(there).astype(int)
        assert np.abs(there - nearest).max() < 1e-4
        assert (nearest >= 0).all() and array[tuple(nearest)] == other[index]


@pytest.fixture
def series(tmp_path, write_series):
    """An axial series, its folder and its files."""
    folder = tmp_path / "data" / "1.2.840.5"
    return folder, write_series(folder, VOLUME, affine_of("axial"))


def edit(path, **tags):
    import pydicom

    dataset = pydicom.dcmread(path)
    for key, value in tags.items():
        if value is None:
            delattr(dataset, key)
        else:
            setattr(dataset, key, value)
    dataset.save_as(path)


def load(folder):
    return LoadVolumed("image", ensure_channel_first=True)({"image": str(folder)})["image"]


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("name", DIRECTIONS)
def test_voxels_lie_where_they_lie_in_nifti(tmp_path, write_series, name, shuffled):
    affine = affine_of(name)
    files = write_series(tmp_path / "series", VOLUME, affine)
    if shuffled:
        for new, old in enumerate(np.random.default_rng(1).permutation(len(files))):
            files[old].rename(tmp_path / "series" / f"slice{new}.dcm")
    nib.save(nib.Nifti1Image(VOLUME.astype(np.float32), affine), tmp_path / "scan.nii.gz")
    ours, nifti = load(tmp_path / "series"), load(tmp_path / "scan.nii.gz")
    assert ours.shape == nifti.shape == (1, *SHAPE) and ours.dtype == nifti.dtype
    same_world(ours[0].numpy(), ours.affine.numpy(), nifti[0].numpy(), nifti.affine.numpy())
    found = find_series(tmp_path / "series")
    assert found.shape == SHAPE
    np.testing.assert_allclose(found.affine, ours.affine, atol=1e-6)


def test_slices_with_rescale_factors_of_their_own_are_not_rounded(series):
    folder, files = series
    edit(files[3], RescaleSlope=0.25)
    expected = VOLUME.astype(float)
    expected[:, :, 3] = (VOLUME[:, :, 3] + 1024) * 0.25 - 1024
    assert np.array_equal(load(folder)[0].numpy(), expected)


def test_several_series_of_one_grid_are_channels(tmp_path, write_series):
    for name, volume in (("t1", VOLUME), ("t2", VOLUME[::-1])):
        write_series(tmp_path / name, volume, affine_of("coronal"))
    both = [str(tmp_path / "t1"), str(tmp_path / "t2")]
    loaded = LoadVolumed("image", ensure_channel_first=True)({"image": both})["image"]
    assert loaded.shape == (2, *SHAPE)
    assert np.array_equal(loaded[1], loaded[0].flip(0))


# Which files count


def test_files_that_count(series):
    folder, files = series
    assert all(map(is_dicom, files)) and dicom_files(folder) == files
    (folder / "DICOMDIR").write_bytes(files[0].read_bytes())
    (folder / ".hidden.dcm").write_bytes(b"")
    (folder / "README").write_text("a text")
    (folder / "notes2.txt").write_text("another")
    (folder / "deeper").mkdir()
    assert dicom_files(folder) == files
    (folder / "IM9999").write_bytes(b"")
    assert dicom_files(folder) == [*files, folder / "IM9999"]
    assert not holds_dicom(folder / "deeper") and dicom_files(folder / "deeper") == []


def test_listed_as_one_image(series, tmp_path):
    folder, _ = series
    item = {"image": str(folder)}
    assert list_images(folder) == [item]
    assert list_images(folder.parent) == [item]
    scan = folder.parent / "a.nii.gz"
    scan.write_bytes(b"")
    assert list_images(folder.parent) == [item, {"image": str(scan)}]
    with pytest.raises(ValueError, match=r"folders in it are not searched \(there is data"):
        list_images(tmp_path)


# What is refused


def remove(k):
    return lambda folder, files: files[k].unlink()


def cut_off(folder, files):
    files[2].write_bytes(files[2].read_bytes()[:-20])


def overwrite(folder, files):
    files[2].write_bytes(b"\0" * 500)


def cut_in_the_header(folder, files):
    files[2].write_bytes(files[2].read_bytes()[:200])


def tilt(folder, files):
    for k, path in enumerate(files):
        place = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine_of("axial") @ [0, 0, k, 1]
        edit(path, ImagePositionPatient=[float(v) for v in (place[0], place[1] + 0.3 * k, place[2])])


REFUSED = {
    "a missing slice": (remove(3), "IM0002 and IM0004 in {} are 5 mm apart, but .* 2.5 mm: 1 slice is missing"),
    "a missing slice near the end": (remove(5), "IM0004 and IM0006 in {} are 5 mm apart"),
    "two missing slices": (lambda f, p: [p[k].unlink() for k in (2, 3)], "2 slices are missing"),
    "uneven": (
        lambda f, p: edit(p[6], ImagePositionPatient=[-30.5, 20.25, 27]),
        "IM0005 and IM0006 in {} are 3.5 mm .*: the spacing is uneven",
    ),
    "cut off": (cut_off, "IM0002 is damaged or not a DICOM image"),
    "no DICOM at all": (overwrite, "IM0002 is damaged or not a DICOM image"),
    "a cut header": (cut_in_the_header, "IM0002 is damaged or not a DICOM image"),
    "gantry tilt": (tilt, r"stacked at an angle \(gantry tilt: one lies 1.8 mm off"),
    "one slice": (lambda f, p: [path.unlink() for path in p[1:]], "holds one slice only, IM0000"),
    "two times": (
        lambda f, p: edit(p[4], ImagePositionPatient=[-30.5, 20.25, 18.5]),
        "IM0003 and IM0004 .*one position",
    ),
    "a localizer": (lambda f, p: edit(p[1], ImageOrientationPatient=[0, 1, 0, 0, 0, -1]), "are not parallel"),
    "a smaller slice": (
        lambda f, p: edit(p[1], Rows=5, PixelData=b"\0" * 50),
        r"differ in size \(5x6 and 5x5 pixels\)",
    ),
    "another zoom": (lambda f, p: edit(p[1], PixelSpacing=[1.2, 0.9]), "differ in pixel spacing"),
    "no position": (lambda f, p: edit(p[1], ImagePositionPatient=None), r"IM0001 has no position \(0020,0032\)"),
    "no orientation": (lambda f, p: edit(p[1], ImageOrientationPatient=None), r"no orientation \(0020,0037\)"),
    "no spacing": (lambda f, p: edit(p[1], PixelSpacing=None), r"no pixel spacing \(0028,0030\)"),
    "frames": (
        lambda f, p: edit(p[1], NumberOfFrames=2, PixelData=b"\0" * 120),
        "IM0001 holds several frames, .*convert it to NIfTI",
    ),
    "colour": (
        lambda f, p: edit(
            p[1],
            SamplesPerPixel=3,
            PhotometricInterpretation="RGB",
            PlanarConfiguration=0,
            BitsAllocated=8,
            BitsStored=8,
            HighBit=7,
            PixelData=b"\0" * 90,
        ),
        "IM0001 is a colour image",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_one_sentence_says_what_is_wrong(series, case):
    folder, files = series
    spoil, message = REFUSED[case]
    spoil(folder, files)
    with pytest.raises(DicomError, match=message.format(folder)) as error:
        load(folder)
    text = str(error.value)
    assert str(folder) in text and "\n" not in text and text.endswith(".")


def test_mixed_series_are_named(series, write_series):
    folder, _ = series
    tags = {"SeriesDescription": "scout \xe4", "SpecificCharacterSet": "ISO_IR 100", "Modality": "MR"}
    for path in write_series(folder / "other", VOLUME[:, :, :2], affine_of("axial"), tags):
        path.rename(folder / f"{path.name}.dcm")
    with pytest.raises(DicomError, match=rf"{folder} holds images of 2 DICOM series: .* a separate folder\.") as error:
        load(folder)
    text = str(error.value)
    assert "'made by a test' (CT, 7 images, series" in text and "(MR, 2 images, series" in text and "\n" not in text
    text.encode()


def test_a_folder_without_dicom_and_a_single_file(series, tmp_path):
    _, files = series
    (tmp_path / "empty").mkdir()
    with pytest.raises(DicomError, match="empty holds no DICOM file; give the folder of one series"):
        load(tmp_path / "empty")
    with pytest.raises(DicomError, match="IM0000 is one DICOM file; name the folder"):
        load(files[0])


def test_positions_may_be_rounded(tmp_path, write_series):
    import pydicom

    affine = affine_of("oblique")
    folder = tmp_path / "series"
    for path in write_series(folder, VOLUME, affine):
        position = pydicom.dcmread(path).ImagePositionPatient
        edit(path, ImagePositionPatient=[round(float(v), 1) for v in position])
    corners = np.array([[0, 0, 0, 1], [4, 5, 6, 1]]).T
    assert np.abs(find_series(folder).affine @ corners - affine @ corners).max() < 0.1
