"""Layouts that people have, made of tiny files, and what `look` understands of them."""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest

from common.auto.layouts import Found
from common.auto.look import look
from common.auto.plan import PlanError, class_rule
from common.auto.study import Study, StudyError
from common.auto.subjects import find_subjects
from common.data import DatalistError, load_datalist
from common.data.label_maps import known_labels, label_map, label_names

DATA = Path(os.environ.get("REVIEW_DATA", Path(__file__).parents[2] / "../shared/data"))
SHAPE = (12, 10, 8)
SPACING = (1.0, 1.0, 2.0)
real = pytest.mark.skipif(not (DATA / "hippocampus").is_dir(), reason="needs the real scans")


def scan(path: Path, seed: int | None = None, shape: tuple[int, ...] = SHAPE, affine: np.ndarray | None = None) -> Path:
    """A scan of its own: no two have one content."""
    scan.count += 1  # type: ignore[attr-defined]
    values = np.random.default_rng(scan.count if seed is None else seed).integers(0, 500, shape).astype(np.int16)  # type: ignore[attr-defined]
    return write(path, values, affine)


scan.count = 0  # type: ignore[attr-defined]


def mask(
    path: Path, labels: tuple[float, ...] = (1,), dtype: type = np.uint8, affine: np.ndarray | None = None
) -> Path:
    """A mask with four voxels of each label, and background."""
    values = np.zeros(SHAPE, dtype)
    for number, label in enumerate(labels):
        values[number, :4, 0] = label
    return write(path, values, affine)


def write(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith((".nii", ".nii.gz")):
        nib.save(nib.Nifti1Image(values, np.diag((*SPACING, 1.0)) if affine is None else affine), path)
        return path
    image = itk.image_from_array(np.ascontiguousarray(values.T))
    image.SetSpacing(SPACING)
    itk.imwrite(image, str(path))
    return path


def pairs(study: Study, root: Path) -> dict[str, str | None]:
    """The mask of each scan, below the root."""
    return {
        "+".join(p.relative_to(root).as_posix() for p in case.images): case.mask
        and case.mask.relative_to(root).as_posix()
        for case in study.cases
    }


def reasons(study: Study) -> dict[str, str]:
    return {file.name: reason for file, reason in study.left_out}


def two_folders(root: Path, count: int = 4, labels: tuple[float, ...] = (1, 2)) -> tuple[Path, Path]:
    for i in range(count):
        scan(root / f"images/case{i}.nii.gz")
        mask(root / f"masks/case{i}.nii.gz", labels)
    return root / "images", root / "masks"


# --- layouts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("images/case{}.nii.gz", "labels/case{}.nii.gz"),
        ("images/case{}.nii.gz", "labels/case{}_seg.nii"),
        ("images/case{}.nrrd", "labels/case{}-label.nrrd"),
        ("images/case{}.mha", "labels/mask_case{}.mha"),
        ("images/img000{}.nii.gz", "labels/label000{}.nii.gz"),
        ("images/volume-{}.nii", "labels/segmentation-{}.nii"),
        ("images/p{}/scan.nii.gz", "labels/p{}/mask.nii.gz"),
        ("images/p{}/scan.nii.gz", "labels/p{}.nii.gz"),
        ("images/train/case{}.nii.gz", "labels/case{}.nii.gz"),
        ("images/case{}_T1.nii.gz", "labels/case{}.nii.gz"),
        ("images/case{}_0000.nii.gz", "labels/case{}.nii.gz"),
        ("images/case{}.nii.gz", "labels/case{}_liver.nii.gz"),
        ("images/case{}_bias-corrected.nii.gz", "labels/case{}.nii.gz"),
    ],
)
def test_two_folders_of_names_that_are_alike(tmp_path, image, label):
    for i in range(4):
        scan(tmp_path / image.format(i))
        if i:
            mask(tmp_path / label.format(i))
    expected = {image.format(i): label.format(i) if i else None for i in range(4)}
    study = look(tmp_path / "images", tmp_path / "labels")
    assert pairs(study, tmp_path) == expected and not study.left_out
    assert len(study.subjects) == 3 and len(study.unlabelled) == 1
    # One folder that holds both is found the same way.
    assert pairs(look(tmp_path), tmp_path) == expected


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("case{}.nii.gz", "case{}_seg.nii.gz"),
        ("case_{}/imaging.nii.gz", "case_{}/segmentation.nii.gz"),
        ("patient{}/patient{}_frame01.nii.gz", "patient{}/patient{}_frame01_gt.nii.gz"),
        ("img/p{}.nii.gz", "ground_truth/p{}.nii.gz"),
    ],
)
def test_one_folder(tmp_path, image, label):
    for i in range(3):
        scan(tmp_path / image.format(i, i))
        mask(tmp_path / label.format(i, i))
    study = look(tmp_path)
    assert pairs(study, tmp_path) == {image.format(i, i): label.format(i, i) for i in range(3)} and not study.left_out


@pytest.mark.parametrize("version", [1, 2])
def test_nnunet(tmp_path, version):
    named = {"0": "T1", "1": "T2"}
    content = (
        {"modality": named, "labels": {"0": "background", "1": "core", "2": "edema", "3": "none"}}
        if version == 1
        else {"channel_names": named, "labels": {"background": 0, "core": 1, "edema": 2, "none": 3}}
    )
    for i in range(4):
        for channel in range(2):
            scan(tmp_path / f"imagesTr/case_{i:03d}_{channel:04d}.nii.gz")
        mask(tmp_path / f"labelsTr/case_{i:03d}.nii.gz", (1, 2))
    scan(tmp_path / "imagesTr/case_009_0000.nii.gz")
    scan(tmp_path / "imagesTs/case_100_0000.nii.gz")
    scan(tmp_path / "imagesTs/case_100_0001.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps(content | {"file_ending": ".nii.gz"}))
    study = look(tmp_path)
    files = "imagesTr/case_000_0000.nii.gz+imagesTr/case_000_0001.nii.gz"
    assert pairs(study, tmp_path)[files] == "labelsTr/case_000.nii.gz" and study.channels == ("T1", "T2")
    assert study.cases[0].facts.channels == 2 and study.labels == {1: "core", 2: "edema"}
    assert [x.name for x in study.kept_aside] == ["case_100"] and not study.unlabelled
    assert reasons(study) == {"case_009_0000.nii.gz": "has 1 channel files, but 2 are expected"}
    assert any("No mask holds 3 none" in note for note in study.notes)
    lists = study.datalist()
    assert [len(lists[name]) for name in ("training", "validation", "test")] == [2, 1, 1]  # 100 is in none
    mask(tmp_path / "elsewhere/heart.nii.gz")
    assert "None of the 1 masks in" in refusal(tmp_path / "imagesTr", tmp_path / "elsewhere")
    # The folders by themselves say the same, without the test part.
    alone = look(tmp_path / "imagesTr", tmp_path / "labelsTr")
    assert alone.labels == study.labels and not alone.kept_aside and len(alone.labelled) == 4
    os.unlink(tmp_path / "dataset.json")
    assert len(look(tmp_path).cases) == 5 and look(tmp_path).channels == ("channel 0", "channel 1")


def test_a_labelled_test_part_stays_the_test_part(tmp_path):
    for part, count in (("Tr", 4), ("Ts", 2)):
        for i in range(count):
            scan(tmp_path / f"images{part}/{part}{i}.nii.gz")
            mask(tmp_path / f"labels{part}/{part}{i}.nii.gz")
    lists = look(tmp_path).datalist()
    assert [x["subject"] for x in lists["test"]] == ["Ts0", "Ts1"] and len(lists["validation"]) == 1


def test_decathlon_and_datalist(tmp_path):
    entries = []
    for i in range(4):
        scan(tmp_path / f"imagesTr/h_{i:03d}.nii.gz")
        mask(tmp_path / f"labelsTr/h_{i:03d}.nii.gz", (1, 2))
        entries.append({"image": f"./imagesTr/h_{i:03d}.nii.gz", "label": f"./labelsTr/h_{i:03d}.nii.gz"})
    scan(tmp_path / "imagesTs/h_100.nii.gz")
    content = {"labels": {"0": "background", "1": "anterior", "2": "posterior"}, "modality": {"0": "MRI"}}
    content |= {"training": entries, "test": ["./imagesTs/h_100.nii.gz"]}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    study = look(tmp_path)
    assert study.labels == {1: "anterior", 2: "posterior"} and study.channels == ("MRI",)
    assert len(study.labelled) == 4 and len(study.kept_aside) == 1
    assert study.voxels[1] == (pytest.approx(4 * 2 / 1000), 4)
    # Its own datalist, read back, means the same, split included.
    study.write_datalist(tmp_path / "out/list.json")
    again = look(tmp_path / "out/list.json")
    assert {x.mask for x in again.cases} == {x.mask for x in study.labelled} and again.labels == study.labels
    for name in ("training", "validation", "test"):
        assert again.datalist()[name] == study.datalist()[name] != []
    (tmp_path / "out/list.json").write_text(json.dumps({"training": [{"label": entries[0]["label"]}]}))
    assert "list.json has an item in 'training' without an 'image': correct it." in refusal(tmp_path / "out/list.json")


def test_bids(tmp_path):
    for i in range(1, 5):
        for session in ("1", "2"):
            stem = f"sub-{i:02d}_ses-{session}"
            for contrast in ("T1w", "FLAIR"):
                scan(tmp_path / f"sub-{i:02d}/ses-{session}/anat/{stem}_{contrast}.nii.gz")
            scan(tmp_path / f"sub-{i:02d}/ses-{session}/func/{stem}_task-rest_bold.nii.gz")
            if i < 4:
                mask(tmp_path / f"derivatives/manual/sub-{i:02d}/ses-{session}/anat/{stem}_desc-x_dseg.nii.gz", (1, 2))
    (tmp_path / "derivatives/manual/x_dseg.tsv").write_text("index\tname\n1\tthalamus\n2\tputamen\n")
    study = look(tmp_path)
    assert study.layout == "BIDS" and study.channels == ("FLAIR", "T1w") and not study.left_out
    assert len(study.labelled) == 6 and len(study.unlabelled) == 2
    assert study.subjects == ("sub-01", "sub-02", "sub-03")
    assert study.labels == {1: "thalamus", 2: "putamen"}
    assert len(look(tmp_path, tmp_path / "derivatives/manual").labelled) == 6
    # Contrasts on grids of their own: the masks' is kept.
    for file in tmp_path.glob("sub-*/ses-*/anat/*_FLAIR.nii.gz"):
        scan(file, shape=(5, 5, 5))
    study = look(tmp_path)
    assert study.channels == ("T1w",) and len(study.labelled) == 6
    assert any("FLAIR, T1w lie on different grids" in note for note in study.notes)


@pytest.mark.parametrize("form", ["{0}/{0}_{1}.nii.gz", "{1}/{0}.nii.gz", "{0}-{1}.nii.gz"])
def test_contrasts_in_names(tmp_path, form):
    for i in range(4):
        for contrast in ("t1", "t1ce", "flair"):
            if (i, contrast) != (3, "flair"):
                scan(tmp_path / "scans" / form.format(f"b{i}", contrast))
        mask(tmp_path / f"masks/b{i}_seg.nii.gz", (1, 2, 4))
    study = look(tmp_path / "scans", tmp_path / "masks")
    assert study.channels == ("flair", "t1", "t1ce") and len(study.labelled) == 3
    assert list(reasons(study).values()) == ["has no flair beside it, as most have"]
    assert study.groups == {1: [1], 2: [2], 3: [4]}
    assert "The labels 1, 2, 4 become the classes 1 to 3." in study.notes
    assert len(study.datalist()["training"][0]["image"]) == 3


def test_a_mask_for_each_contrast_makes_them_scans_of_their_own(tmp_path):
    for i in range(3):
        for kind in ("ct", "mr"):
            scan(tmp_path / f"p{i}_{kind}.nii.gz")
            mask(tmp_path / f"p{i}_{kind}_labels.nii.gz")
    study = look(tmp_path)
    assert len(study.labelled) == 6 and study.channels == ("image",)
    assert study.subjects == ("p0", "p1", "p2")


def test_dicom_folders(tmp_path):
    for i in range(4):
        dicom(tmp_path / f"scans/PAT{i}/SER1", i)
        if i < 3:
            mask(tmp_path / f"masks/PAT{i}.nii.gz", affine=np.diag((-1.0, -1.0, 2.0, 1.0)))
    dicom(tmp_path / "scans/PAT9/SER1", 9)
    dicom(tmp_path / "scans/PAT9/SER1", 10, prefix="b")
    study = look(tmp_path / "scans", tmp_path / "masks")
    assert study.layout == "two folders of DICOM series" and study.labelled[0].facts.shape == SHAPE
    assert [x.name for x in study.unlabelled] == ["PAT3/SER1"] and len(study.labelled) == 3
    assert "holds images of 2 DICOM series" in reasons(study)["SER1"]


def dicom(folder: Path, seed: int, prefix: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 500, SHAPE[::-1]).astype(np.int16)
    for number, plane in enumerate(values):
        image = itk.image_from_array(plane[None])
        image.SetSpacing(SPACING)
        image.SetOrigin((0.0, 0.0, number * SPACING[2]))
        tags = image.GetMetaDataDictionary()
        tags["0020|000e"] = f"1.2.3.{seed}"
        tags["0020|000d"] = f"1.2.{seed}"
        tags["0008|0060"] = "MR"
        io = itk.GDCMImageIO.New()
        io.KeepOriginalUIDOn()
        writer = itk.ImageFileWriter[itk.Image[itk.SS, 3]].New(
            image, FileName=str(folder / f"{prefix}{number:03d}.dcm")
        )
        writer.SetImageIO(io)
        writer.Update()


# --- subjects -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "subjects"),
    [
        (
            ["patient001_frame01", "patient001_frame12", "patient002_frame01"],
            ["patient001", "patient001", "patient002"],
        ),
        (["OAS1_0001_MR1", "OAS1_0001_MR2", "OAS1_0002_MR1"], ["OAS1_0001", "OAS1_0001", "OAS1_0002"]),
        (["p1_2006-05-02", "p1_20070502", "p2_2006-05-02"], ["p1", "p1", "p2"]),
        (["p1/STUDY1/SER2", "p1/STUDY2/SER1", "p2/STUDY1/SER2"], ["p1", "p1", "p2"]),
        (["BraTS-GLI-00005-000", "BraTS-GLI-00005-001", "BraTS-GLI-00006-000", "BraTS-GLI-00008-000"], [5, 5, 6, 8]),
        (["hippocampus_001", "hippocampus_002", "hippocampus_003"], None),
        (["IXI012-HH-1211", "IXI013-HH-1212", "IXI014-HH-1213"], None),
        (["control_m1", "control_m2", "treated_m1", "treated_m2"], None),
        (["scan_v1", "scan_v2", "scan_v3"], None),
        ([f"site{i}_{j:03d}" for i in range(4) for j in range(30)], None),
        ([f"Brats18_TCIA0{i}_{j}_1" for i in range(3) for j in range(101, 104)], None),
        (["sub-01_T1w", "x/sub-01_run-2", "sub-02"], ["sub-01", "sub-01", "sub-02"]),
        # Field, visit and repeat of UK Biobank.
        (
            [f"10000{who}_20252_{visit}_0" for who in range(3) for visit in (2, 3)],
            [f"10000{who}_20252" for who in (0, 0, 1, 1, 2, 2)],
        ),
        ([f"Brats18_TCIA0{i}_{j}_1" for i in range(3) for j in range(101, 105)], None),
        ([f"{who}_20190{month}01" for who in "12" for month in (1, 2)], list("1122")),
        ([f"20190{month}01_100{who}" for who in (1, 2) for month in (1, 2)], ["1001"] * 2 + ["1002"] * 2),
        ([f"p{who}/{kind}" for who in (1, 2) for kind in ("ct", "mr")], ["p1", "p1", "p2", "p2"]),
        ([f"p{who}/p{who}_{kind}" for who in (1, 2) for kind in ("ct", "mr")], ["p1/p1"] * 2 + ["p2/p2"] * 2),
        ([f"p{who}_{kind}" for who in (1, 2) for kind in ("CT", "PET")], ["p1", "p1", "p2", "p2"]),
        # Of some people one of the contrasts is missing.
        (["p1_T1", "p2_T1", "p2_FLAIR", "p3_T1", "p3_FLAIR", "p4_FLAIR"], ["p1", "p2", "p2", "p3", "p3", "p4"]),
    ],
)
def test_subjects_by_their_names(names, subjects):
    expected = names if subjects is None else subjects
    if subjects and isinstance(subjects[0], int):
        expected = [f"BraTS-GLI-{n:05d}" for n in subjects]
    assert find_subjects([Found(name, ()) for name in names])[0] == expected


@pytest.mark.parametrize(
    "form",
    [
        "P{0}_v{1}_T1w",
        "P{0}_ses-{1}_T1w",
        "P{0}_visit_{1}_brain",
        "P{0}_m0{1}_FLAIR",
        "P{0}/2020010{1}/T1w",
        "P{0}_2020-01-0{1}_T1w",
        "2020010{1}_P{0}",
        "v{1}/P{0}",
        "V{1}/P{0}/t1",
        "T1w_P{0}_v{1}",
    ],
)
def test_visits_at_any_place_of_the_names(form):
    names = [form.format(f"{who:02}", visit) for who in range(1, 4) for visit in (1, 2)]
    subjects, how = find_subjects([Found(name, ()) for name in names])
    assert subjects == ["P01", "P01", "P02", "P02", "P03", "P03"]
    assert how == f"by the names ({names[0]}, {names[1]} belong to one)"


def test_visits_in_words_and_numbers_of_adni():
    names = [f"{visit}/P{who}_T1w" for visit in ("baseline", "followup") for who in range(3)]
    assert find_subjects([Found(name, ()) for name in names])[0] == ["P0", "P1", "P2"] * 2
    names = [
        f"ADNI_002_S_{who:04}_MR_MPRAGE_br_raw_20{year}0101_S{who}_I{year}" for who in (295, 413) for year in (10, 12)
    ]
    subjects, how = find_subjects([Found(name, ()) for name in names])
    assert subjects == ["002_S_0295"] * 2 + ["002_S_0413"] * 2 and how == "by ADNI's numbers in the names"


def test_numbers_of_subjects_are_no_dates():
    """Some of eight digits look like a date, but not all."""
    names = [f"case_2019{month:02}12" for month in range(1, 14)]
    assert find_subjects([Found(name, ()) for name in names])[0] == names


@pytest.mark.parametrize(
    "names",
    [
        [f"{year}/P0{who}" for year in (2019, 2020) for who in range(4)],
        [f"{year}_P0{who}" for year in (2019, 2020) for who in range(4)],
        [f"study{study}/00{who}" for study in (1, 2) for who in range(4)],
        ["scan_visit1", "scan_visit2", "scan_visit3"],
        ["control_visit1", "treated_visit1", "control_visit2", "treated_visit2"],
        ["baseline", "followup"],
        [f"2019{month:02}01_{scan}" for scan in (1, 2) for month in range(1, 13)],
        [f"2019-0{month}-01/00{scan}_T1w" for scan in (1, 2) for month in range(1, 6)],
        [f"{kind}_train_100{who}" for kind in ("ct", "mr") for who in range(1, 6)],
        [f"{kind}/100{who}" for kind in ("CT", "T1w") for who in range(1, 6)],
        [f"set1/{kind}_{who}" for kind in ("ct", "mr") for who in range(1, 6)],
        ["T1_004", "T2_004", *(f"T1_00{who}" for who in range(4)), *(f"T2_00{who}" for who in range(5, 8))],
    ],
)
def test_names_with_two_readings_are_refused(names):
    cases = [Found(name, (Path(f"/x/{name}.nii.gz"),)) for name in names]
    with pytest.raises(StudyError, match=f"^{names[0]} and .* may be two visits of one subject or scans of two: name"):
        find_subjects(cases)
    assert len(set(find_subjects(cases, ".*", root=Path("/x"))[0])) == len(names)


def test_subjects_of_a_table_and_of_a_pattern(tmp_path):
    images, masks = two_folders(tmp_path)
    for i in range(4):
        os.rename(images / f"case{i}.nii.gz", images / f"ab{i // 2}x{i}.nii.gz")
        os.rename(masks / f"case{i}.nii.gz", masks / f"ab{i // 2}x{i}.nii.gz")
    assert len(look(images, masks).subjects) == 4
    assert look(images, masks, r"ab\d").subjects == ("ab0", "ab1")
    assert look(images, masks, r"(b\d)x").subjects == ("b0", "b1")
    with pytest.raises(DatalistError, match=r"--subject 'q' finds nothing in 4 of 4 scans"):
        look(images, masks, "q")
    for i in range(4):
        os.rename(images / f"ab{i // 2}x{i}.nii.gz", images / f"ab{i // 2}-x{i}.nii.gz")
        os.rename(masks / f"ab{i // 2}x{i}.nii.gz", masks / f"ab{i // 2}-x{i}.nii.gz")
    (tmp_path / "participants.tsv").write_text("participant_id\tage\nab0\t20\nab1\t30\n")
    study = look(images, masks)
    assert study.subjects == ("ab0", "ab1") and study.grouping == "by participants.tsv"


def test_the_split_is_by_subject_and_the_same_each_time(tmp_path):
    for i in range(10):
        for frame in (1, 2):
            scan(tmp_path / f"images/p{i}_frame{frame}.nii.gz")
            if i < 8:
                mask(tmp_path / f"masks/p{i}_frame{frame}.nii.gz")
    study = look(tmp_path / "images", tmp_path / "masks")
    content = study.write_datalist(tmp_path / "a.json", seed=1)
    subjects = {
        name: {x["subject"] for x in content[name]} for name in ("training", "validation", "test", "unlabelled")
    }
    assert [len(x) for x in subjects.values()] == [5, 1, 2, 2] and len(set.union(*subjects.values())) == 10
    loaded = load_datalist(tmp_path / "a.json", check="full")
    assert [len(loaded[name]) for name in ("training", "validation", "test")] == [10, 2, 4]
    loaded = load_datalist(tmp_path / "a.json", training_sections=("training", "unlabelled"), label_key=None)
    assert len(loaded["training"]) == 14
    again = look(tmp_path / "images", tmp_path / "masks")
    assert again.datalist(seed=1) == content != again.datalist(seed=2)
    with pytest.raises(DatalistError, match=r"a\.json exists"):
        study.write_datalist(tmp_path / "a.json")


# --- bad input ----------------------------------------------------------------------------------------------------


def refusal(*args) -> str:
    with pytest.raises(StudyError) as error:
        look(*args)
    assert str(error.value).count("\n") == 0 and str(error.value).endswith(".")
    return str(error.value)


def test_folders_without_scans(tmp_path):
    assert "does not exist: give the folder of the scans." in refusal(tmp_path / "x")
    assert "holds no scan: NIfTI" in refusal(tmp_path)
    images, _ = two_folders(tmp_path / "study")
    (tmp_path / "none").mkdir()
    assert "none holds no mask: NIfTI" in refusal(images, tmp_path / "none")
    (tmp_path / "png").mkdir()
    for i in range(3):
        (tmp_path / f"png/{i}.png").touch()
    assert "holds no scan but 3 pictures" in refusal(tmp_path / "png")
    assert "convert each stack of slices to one volume" in refusal(tmp_path / "png")
    assert "is a file: give the folder of the scans." in refusal(images / "case0.nii.gz")


def test_masks_of_one_folder_are_not_given_to_scans_of_another(tmp_path):
    """Their own scans are missing; a number says who it is in its folder alone."""
    for number in range(8):
        scan(tmp_path / f"scans/siteA/{number:03}.nii.gz", seed=number)
        if number < 5:
            scan(tmp_path / f"scans/siteB/{number:03}.nii.gz", seed=100 + number)
        mask(tmp_path / f"masks/siteB/{number:03}.nii.gz")
    study = look(tmp_path / "scans", tmp_path / "masks")
    found = pairs(study, tmp_path)
    assert {key: value for key, value in found.items() if value} == {
        f"scans/siteB/{number:03}.nii.gz": f"masks/siteB/{number:03}.nii.gz" for number in range(5)
    }
    assert all("is a mask without a scan" in reasons(study)[f"{number:03}.nii.gz"] for number in (5, 6, 7))


@pytest.mark.parametrize("one_folder", [False, True])
def test_masks_of_a_centre_without_scans_are_not_given_to_those_of_another(tmp_path, one_folder):
    for number in range(8):
        scan(tmp_path / f"images/centreA/{number:03}.nii.gz")
        mask(tmp_path / f"masks/centre{'A' if number < 5 else 'B'}/{number:03}.nii.gz")
    study = look(tmp_path) if one_folder else look(tmp_path / "images", tmp_path / "masks")
    assert {x.images[0].name: x.mask and x.mask.parent.name for x in study.cases} == {
        f"{number:03}.nii.gz": "centreA" if number < 5 else None for number in range(8)
    }
    assert all("is a mask without a scan" in reasons(study)[f"{number:03}.nii.gz"] for number in (5, 6, 7))


def test_a_mask_of_another_visit_is_not_given_to_a_scan(tmp_path):
    for name, mask_name in (("p1_pre", "p1_pre_seg"), ("p2", "p2_seg"), ("p3", "p3_post_seg"), ("p4-baseline", "p4")):
        scan(tmp_path / f"images/{name}.nii.gz")
        mask(tmp_path / f"masks/{mask_name}.nii.gz")
    study = look(tmp_path / "images", tmp_path / "masks")
    assert [x.name for x in study.labelled] == ["p1_pre", "p2"] and not study.notes
    assert {"p3_post_seg.nii.gz", "p4.nii.gz"} == {
        name for name, why in reasons(study).items() if "without a scan" in why
    }


def test_guessed_pairs_are_listed(tmp_path):
    images, masks = two_folders(tmp_path)
    assert not look(images, masks).notes
    for i in range(2):
        os.rename(masks / f"case{i}.nii.gz", masks / f"case{i}_liver.nii.gz")
    (note,) = look(images, masks).notes
    assert note == (
        "2 pairs are a guess, since the names differ: case0.nii.gz with case0_liver.nii.gz, case1.nii.gz with "
        "case1_liver.nii.gz."
    )
    (tmp_path / "images/train").mkdir()
    for file in images.glob("*.nii.gz"):
        os.rename(file, images / "train" / file.name.replace("case3", "case3_t1"))
    for i in range(2):
        os.rename(masks / f"case{i}_liver.nii.gz", masks / f"case{i}.nii.gz")
    os.rename(masks / "case3.nii.gz", masks / "case3_t2.nii.gz")
    (note,) = look(images, masks).notes
    assert note.startswith("4 pairs are a guess") and "train/case3_t1.nii.gz with case3_t2.nii.gz" in note


def test_masks_of_other_cases(tmp_path):
    images, masks = two_folders(tmp_path)
    mask(masks / "other.nii.gz")
    assert "is a mask without a scan of its name" in reasons(look(images, masks))["other.nii.gz"]
    for i in range(4):
        os.rename(masks / f"case{i}.nii.gz", masks / f"heart{i}.nii.gz")
    text = refusal(images, masks)
    assert "None of the 5 masks" in text and "(masks: heart0," in text and "scans: case0," in text


def test_umlauts_of_macos_are_those_of_other_systems(tmp_path):
    for form, folder in (("NFD", "images"), ("NFC", "masks")):
        for i in range(3):
            name = unicodedata.normalize(form, f"Jürgen Groß/Kopf {i}.nii.gz")
            (scan if folder == "images" else mask)(tmp_path / folder / name)
    study = look(tmp_path / "images", tmp_path / "masks")
    assert len(study.labelled) == 3 and not study.left_out


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
    images, masks = two_folders(tmp_path)

    def refused(*folders):
        raise PermissionError(13, "Permission denied", str(folders[0]))

    monkeypatch.setattr("common.auto.look.find_layout", refused)
    with pytest.raises(StudyError, match=r"images cannot be read \(Permission denied\): ask for the right to read it"):
        look(images, masks)


def test_names_that_go_on_with_a_number_are_of_other_scans(tmp_path):
    images, masks = two_folders(tmp_path)
    for i in range(4):
        os.rename(masks / f"case{i}.nii.gz", masks / f"case{i}_7.nii.gz")
    assert "None of the 4 masks" in refusal(images, masks)
    for i in range(4):
        scan(images / f"case{i}_resampled.nii.gz")
        scan(images / f"case{i}_smooth.nii.gz")
        os.rename(masks / f"case{i}_7.nii.gz", masks / f"case{i}.nii.gz")
        os.unlink(images / f"case{i}.nii.gz")
    assert "None of the 4 masks" in refusal(images, masks)  # of which of the two?


def test_two_masks_of_one_scan(tmp_path):
    images, masks = two_folders(tmp_path)
    mask(masks / "case1_seg.nii.gz")
    scan(images / "case2.nii")
    study = look(images, masks)
    assert [x.name for x in study.cases] == ["case0", "case3"]
    assert reasons(study)["case1.nii.gz"].startswith("has 2 masks (case1.nii.gz and case1_seg.nii.gz): keep one")
    assert reasons(study)["case2.nii"] == "has the name of case2.nii.gz: keep one of them"


def test_masks_without_a_structure(tmp_path):
    images, masks = two_folders(tmp_path, labels=())
    assert "The masks hold no structure, 4 of them only background (0)" in refusal(images, masks)
    write(masks / "case0.nii.gz", np.ones(SHAPE, np.uint8))
    mask(masks / "case1.nii.gz")
    study = look(images, masks)
    assert reasons(study)["case0.nii.gz"] == "is 1 everywhere, without background (0)"
    assert any("2 of 3 masks hold only background" in note for note in study.notes)


def test_masks_of_0_and_255(tmp_path):
    images, masks = two_folders(tmp_path, labels=(255,))
    study = look(images, masks)
    assert study.groups == {1: [255]}
    assert study.notes == ("The masks have 255 for the structure, which becomes class 1.",)
    mask(masks / "case2.nii.gz", (1,))
    text = refusal(images, masks)
    assert "Some masks have 1 for the structure and some 255" in text and "case2.nii.gz has 1" in text


def test_masks_with_a_place_of_their_own(tmp_path):
    images, masks = two_folders(tmp_path)
    mask(masks / "case1.nii.gz", affine=np.eye(4))
    study = look(images, masks)
    assert (
        "mm away from" in reasons(study)["case1.nii.gz"] and "copy the scan's header" in reasons(study)["case1.nii.gz"]
    )
    for i in range(4):
        mask(masks / f"case{i}.nii.gz", affine=np.eye(4))
    assert "None of the 4 masks can be used" in refusal(images, masks)
    # Other formats are compared as well, but for the order of their axes.
    for i in range(4):
        os.unlink(images / f"case{i}.nii.gz")
        scan(images / f"case{i}.nrrd")
    assert "None of the 4 masks can be used" in refusal(images, masks)
    for i in range(4):
        mask(masks / f"case{i}.nii.gz", affine=np.diag((-1.0, -1.0, 2.0, 1.0)))
    assert len(look(images, masks).labelled) == 4


def test_too_few_subjects(tmp_path):
    images, masks = two_folders(tmp_path, 2)
    study = look(images, masks)
    with pytest.raises(StudyError, match=r"2 subjects with masks \(case0, case1\) cannot be split .* 3 or more"):
        study.datalist()
    assert any(line.startswith("Not enough: 2 subjects") for line in study.describe())
    assert "None of the 2 scans has a mask" in str(look(images).refusal)


def test_masks_of_broken_numbers(tmp_path):
    images, masks = two_folders(tmp_path)
    mask(masks / "case1.nii.gz", (0.5, 1), np.float32)
    mask(masks / "case2.nii.gz", (-3,), np.int16)
    study = look(images, masks)
    assert "not whole numbers (0.5): draw whole numbers" in reasons(study)["case1.nii.gz"]
    assert "outside 0 or more (-3)" in reasons(study)["case2.nii.gz"]
    assert "(are scans and masks swapped?)" in refusal(masks, images)


def test_a_label_that_one_mask_alone_has(tmp_path):
    images, masks = two_folders(tmp_path)
    mask(masks / "case2.nii.gz", (1, 2, 7))
    study = look(images, masks)
    assert study.voxels[7].cases == 1 and study.voxels[1].cases == 4
    (note,) = [note for note in study.notes if "one mask alone" in note]
    assert note.startswith(f"The label 7 is in one mask alone ({masks / 'case2.nii.gz'})")


HEAD = np.diag((15.0, 18.0, 20.0, 1.0))  # of 12x10x8 voxels


def atlas(root: Path, labels: list[int], affine: np.ndarray = HEAD, ct: bool = False) -> tuple[Path, Path]:
    """Scans with a mask that holds all these labels."""
    for i in range(3):
        values = np.random.default_rng(i).integers(0, 500, SHAPE).astype(np.int16)
        values[:, :, :3] -= 1000 * ct
        write(root / f"images/case{i}.nii.gz", values, affine)
        numbers = np.zeros(SHAPE, np.int32)
        numbers.flat[1 : 1 + len(labels)] = labels
        write(root / f"masks/case{i}.nii.gz", numbers, affine)
    return root / "images", root / "masks"


def scheme_labels(name: str) -> list[int]:
    return sorted(known_labels(name) - {0})


@pytest.mark.parametrize("name", ["dlmuse", "freesurfer"])
def test_atlases_with_numbers_of_their_own_are_found_in_heads(tmp_path, name):
    labels = scheme_labels(name)
    study = look(*atlas(tmp_path / "head", labels))
    assert study.label_scheme == name and study.modality == "MR"
    assert any(f"numbered like {name}, judging" in note for note in study.notes)
    for folder, other in (("ct", {"ct": True}), ("small", {"affine": np.eye(4)})):
        study = look(*atlas(tmp_path / folder, labels, **other))
        assert study.label_scheme is None and study.possible_scheme is None
    of = {k: n for n, of in label_map(name, "structures34").items() for k in of}
    fitting = {k: f"the {label_names('structures34')[of.get(k, 0)].lower()}" for k in labels}
    assert look(*atlas(tmp_path / "named", labels), names=fitting).label_scheme == name
    foreign = {k: f"{('spleen', 'liver', 'kidney')[k % 3]} {k}" for k in labels}
    study = look(*atlas(tmp_path / "organs", labels), names=foreign)
    assert study.label_scheme is None and study.possible_scheme is None


@pytest.mark.parametrize(("last", "possible"), [(138, "malpem"), (117, "malpem"), (35, "oasis_seg35")])
def test_labels_without_gaps_prove_no_atlas(tmp_path, last, possible):
    """Any list of structures counts from 1 on, as that of TotalSegmentator (117)."""
    labels = list(range(1, last + 1))
    study = look(*atlas(tmp_path / "head", labels))
    assert study.label_scheme is None and study.possible_scheme == possible
    assert any(f"may be numbered like {possible}, but their labels do not prove it" in note for note in study.notes)
    assert class_rule(study, None)[0]["num_classes"] == last + 1
    assert class_rule(study, "structures34")[0] == {"task": "structures34", "label_scheme": possible}
    assert "label_scheme" not in study.datalist()
    study = look(*atlas(tmp_path / "body", labels, ct=True))
    assert study.possible_scheme is None and study.notes == ()
    with pytest.raises(PlanError, match="--task structures34: the masks follow no known label scheme"):
        class_rule(study, "structures34")


def test_masks_that_share_no_label(tmp_path):
    images, masks = two_folders(tmp_path)
    assert not look(images, masks).notes
    for i in range(2):
        mask(masks / f"case{i}.nii.gz", (3, 4))
    (note,) = look(images, masks).notes
    assert "case0.nii.gz has 3, 4, " in note and "case2.nii.gz has 1, 2." in note


def test_damaged_files_and_copies(tmp_path):
    images, masks = two_folders(tmp_path, 5)
    data = (images / "case0.nii.gz").read_bytes()
    (images / "case0.nii.gz").write_bytes(data[: len(data) // 2])
    write(images / "case1.nii.gz", np.zeros(SHAPE, np.int16))
    scan(images / "case2.nii.gz", 7, (20, 20, 20))
    mask_of_20 = np.zeros((20, 20, 20), np.uint8)
    mask_of_20[:2] = 1
    write(masks / "case2.nii.gz", mask_of_20)
    shutil.copy(images / "case2.nii.gz", images / "again.nii.gz")
    (images / "case3.nii.gz").write_bytes(b"")
    study = look(images, masks)
    assert [x.name for x in study.cases] == ["case2", "case4"]
    found = reasons(study)
    assert found["again.nii.gz"] == f"is a copy of {images / 'case2.nii.gz'}"
    assert "is constant" in found["case1.nii.gz"] and "is empty" in found["case3.nii.gz"] and found["case0.nii.gz"]


def test_scans_of_other_channels_are_left_out(tmp_path):
    images, masks = two_folders(tmp_path)
    scan(images / "cine.nii.gz", shape=(*SHAPE, 5))
    assert reasons(look(images, masks))["cine.nii.gz"] == "has 5 channels, but others have 1"


def test_description(tmp_path):
    images, masks = two_folders(tmp_path)
    scan(images / "extra.nii.gz")
    lines = look(images, masks).describe()
    assert lines[0] == (
        "Found: 5 scans of 5 subjects in two folders of files, 4 with a mask, 1 without (for pre-training)."
    )
    text = "\n".join(lines)
    for part in ("a guess by the intensities", "1x1x2 mm", "thick slices", "12x10x8 voxels", "label 1 (8 mm3)", "RAS"):
        assert part in text
    assert len(lines) <= 10


def test_given_names_go_before_those_of_a_table(tmp_path):
    for name in "abc":
        scan(tmp_path / f"images/{name}.nii.gz")
        mask(tmp_path / f"masks/{name}.nii.gz", (1, 2))
    (tmp_path / "labels.tsv").write_text("index\tname\n1\tball\n2\tcube\n")
    study = look(tmp_path / "images", tmp_path / "masks", names={2: "box"})
    assert study.labels == {1: "ball", 2: "box"}


def test_reading_many_scans_tells_how_far_it_is(tmp_path, monkeypatch):
    for name in "abcd":
        scan(tmp_path / f"images/{name}.nii.gz")
        mask(tmp_path / f"masks/{name}.nii.gz")
    said: list[str] = []
    look(tmp_path / "images", tmp_path / "masks", say=said.append)
    assert said == []  # a moment
    monkeypatch.setattr("common.auto.look.SAY_EVERY", 0.0)
    look(tmp_path / "images", tmp_path / "masks", say=said.append)
    headers = [line for line in said if line.startswith("Checked the headers of ")]
    assert [line.split(";")[0][-12:] for line in headers] == [f"{n} of 4 scans"[-12:] for n in (1, 2, 3)]
    assert any(line.startswith("Read 2 of 4 scans; about 0 s left") for line in said)


def test_channels_in_one_file(tmp_path):
    for i in range(3):
        scan(tmp_path / f"images/case{i}.nii.gz", shape=(*SHAPE, 2))
        mask(tmp_path / f"masks/case{i}.nii.gz")
    study = look(tmp_path)
    assert study.channels == ("channel 0", "channel 1") and len(study.labelled) == 3


def test_masks_that_are_given_are_taken(tmp_path):
    two_folders(tmp_path)
    assert len(look(tmp_path, tmp_path).labelled) == 4  # one folder, said twice
    (tmp_path / "loop").symlink_to(tmp_path)
    assert len(look(tmp_path).labelled) == 4
    # A layout's own masks do not stand in for those that are asked for.
    for name in ("case0", "case1", "case2"):
        scan(tmp_path / f"nn/imagesTr/{name}.nii.gz")
        mask(tmp_path / f"nn/labelsTr/{name}.nii.gz", (1,))
        mask(tmp_path / f"better/{name}.nii.gz", (1, 2))
    assert set(look(tmp_path / "nn").labels) == {1} and set(look(tmp_path / "nn", tmp_path / "better").labels) == {1, 2}
    for i in range(3):
        file = scan(tmp_path / f"bids/sub-{i}/anat/sub-{i}_T1w.nii.gz")
        mask(tmp_path / f"drawn/{file.name}")
    assert len(look(tmp_path / "bids", tmp_path / "drawn").labelled) == 3
    assert "None of the 3 masks in" in refusal(tmp_path / "bids", tmp_path / "better")
    look(tmp_path / "nn").write_datalist(tmp_path / "list.json")
    assert "already names its masks" in refusal(tmp_path / "list.json", tmp_path / "better")


def test_subjects_of_a_datalist_are_kept(tmp_path):
    items = []
    for i in range(4):
        scan(tmp_path / f"a{i}.nii.gz")
        mask(tmp_path / f"m{i}.nii.gz")
        items.append({"image": f"a{i}.nii.gz", "label": f"m{i}.nii.gz"} | ({"subject": "x"} if i < 2 else {}))
    items.append({"image": "a0.nii.gz", "label": "other.nii.gz"})  # of one scan, one mask is missing
    (tmp_path / "list.json").write_text(json.dumps({"training": items}))
    study = look(tmp_path / "list.json")
    assert [x.subject for x in study.cases] == ["x", "x", "a2", "a3"]
    assert reasons(study) == {"other.nii.gz": "does not exist"}


# --- real scans ---------------------------------------------------------------------------------------------------


@real
def test_real_scans(tmp_path):
    for name, count in (("hippocampus/imagesTr", 6), ("acdc/images", 8), ("ixi/t1", 4)):
        target = tmp_path / name
        target.mkdir(parents=True)
        labels = {"imagesTr": "labelsTr", "images": "labels", "t1": "labels"}[target.name]
        (target.parent / labels).mkdir()
        for file in sorted((DATA / name).iterdir())[:count]:
            os.symlink(file.resolve(), target / file.name)
            os.symlink((DATA / name).parent.resolve() / labels / file.name, target.parent / labels / file.name)
    hippocampus = look(tmp_path / "hippocampus")
    assert len(hippocampus.subjects) == 6 and hippocampus.anisotropy == 1 and set(hippocampus.labels) == {1, 2}
    acdc = look(tmp_path / "acdc/images", tmp_path / "acdc/labels")
    assert len(acdc.subjects) == 4 and acdc.anisotropy == 10 and acdc.modality == "MR"
    ixi = look(tmp_path / "ixi")
    assert len(ixi.subjects) == 4 and ixi.label_scheme == "dlmuse"


def test_few_subjects_and_two_modalities_are_pointed_out(tmp_path):
    """Three scans are enough to run and not for a model: the description says so, and which scan is of another kind."""
    for number in range(3):
        file = scan(tmp_path / f"images/case{number}.nii.gz")
        if number < 2:
            values = np.asanyarray(nib.load(file).dataobj).astype(np.int16) - 1000
            write(file, values)
        mask(tmp_path / f"masks/case{number}.nii.gz")
    text = "\n".join(look(tmp_path / "images", tmp_path / "masks").describe())
    assert "Modality: CT, a guess by the intensities (Hounsfield units); rather MR: case2." in text
    assert "Note: CT and MR share no scale of intensities, and all scans are prepared as CT" in text
    assert "Note: 3 subjects with masks are few." in text and "10 are a start" in text
    for number in range(3, 10):
        write(tmp_path / f"images/case{number}.nii.gz", values - number)
        mask(tmp_path / f"masks/case{number}.nii.gz")
    (tmp_path / "images/case2.nii.gz").unlink()
    shutil.copy(tmp_path / "masks/case2.nii.gz", tmp_path / "masks/case10.nii.gz")
    (tmp_path / "masks/case2.nii.gz").unlink()
    write(tmp_path / "images/case10.nii.gz", values - 10)
    text = "\n".join(look(tmp_path / "images", tmp_path / "masks").describe())
    assert "are few" not in text and "rather" not in text


def test_two_masks_of_a_scan_are_refused_and_one_in_dicom_is_left_out(tmp_path):
    images, masks = two_folders(tmp_path)
    items = [{"image": f"images/case{i}.nii.gz", "label": [f"masks/case{i}.nii.gz"] * 2} for i in range(4)]
    (tmp_path / "list.json").write_text(json.dumps({"training": items}))
    assert "gives images/case0.nii.gz 2 masks: merge them into one file" in refusal(tmp_path / "list.json")
    (masks / "case0.nii.gz").unlink()
    dicom(masks / "case0", 1)
    assert reasons(look(images, masks))["case0"].startswith("is a mask in DICOM, which cannot be read: convert it")


def test_labels_above_a_million_are_counted(tmp_path):
    """As those of RadLex, for which a table would be too long."""
    images, masks = two_folders(tmp_path)
    for i in range(4):
        mask(masks / f"case{i}.nii.gz", (3, 2_000_003), np.uint32)
    study = look(images, masks)
    assert list(study.labels) == [3, 2_000_003] and study.voxels[2_000_003] == study.voxels[3]
