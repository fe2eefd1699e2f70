"""Which mask belongs to which scan, and which scans to which subject."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from common.data import DatalistError, load_datalist
from common.data.prepare import prepare
from common.data.prepare.datasets import describe
from common.data.prepare.split import split_by_subject

SECTIONS = ("training", "validation", "test", "unlabelled")


def touch(root: Path, *names: str) -> None:
    """Volumes that serve as images (not constant) and as labels (0 and 1)."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image((np.arange(60) % 2).astype(np.uint8).reshape(3, 4, 5), np.eye(4)), path)


def made(name: str, root: Path, **options) -> tuple[dict[str, str | None], dict[str, set[str]], dict]:
    """Mask of each scan, by file name; subjects of each list; the file as written."""
    output = root.parent / "list.json"
    prepare(name, root, output, force=True, **options)
    content = json.loads(output.read_text())
    items = [x for section in SECTIONS for x in content.get(section, [])]

    def short(value):
        path = value[0] if isinstance(value, list) else value
        return None if path is None else os.path.relpath(output.parent / path, root)

    pairs = {short(x["image"]): short(x.get("label")) for x in items}
    return pairs, {s: {x["subject"] for x in content.get(s, [])} for s in SECTIONS}, content


def frames(patients: int = 10) -> list[str]:
    return [f"patient{p:03d}_frame{f:02d}.nii.gz" for p in range(1, patients + 1) for f in (1, 2)]


def test_acdc_in_two_folders_of_equal_names(tmp_path):
    root = tmp_path / "acdc"
    touch(root, *(f"{folder}/{name}" for name in frames() for folder in ("images", "labels")))
    pairs, subjects, content = made("acdc", root)
    assert pairs == {f"images/{name}": f"labels/{name}" for name in frames()}
    assert not subjects["training"] & subjects["test"] and content["label_scheme"] == "task"
    touch(root, "copy/patient001_frame01.nii.gz")
    with pytest.raises(DatalistError, match=r"Two images have one name: .*frame01.nii.gz and .*frame01.nii.gz"):
        made("acdc", root)


def test_two_folders(tmp_path):
    root = tmp_path / "study"
    touch(root, *(f"mri/{i}.nii.gz" for i in range(12)), *(f"truth/{i}_seg.nii.gz" for i in range(8)))
    touch(root, "truth/99_seg.nii.gz", "truth/notes.nii.gz")
    options = {"images": "mri", "labels": "truth", "label_ending": "_seg"}
    pairs, subjects, content = made("folders", root, **options)
    assert pairs == {f"mri/{i}.nii.gz": f"truth/{i}_seg.nii.gz" if i < 8 else None for i in range(12)}
    assert subjects["unlabelled"] == {"8", "9", "10", "11"} and "domain" not in content["training"][0]
    assert content["masks_without_scan"] == ["truth/99_seg.nii.gz", "truth/notes.nii.gz"]
    text = describe(content)
    assert "masks without a scan, not used: 2 (truth/99_seg.nii.gz, truth/notes.nii.gz)" in text
    assert "4 scans of 4 subjects (10.nii.gz, 11.nii.gz, 8.nii.gz, 9.nii.gz)" in text


@pytest.mark.parametrize(
    ("more", "options", "message"),
    [
        ([], {}, r"No folder at .*/labels: name it with --labels .*or --labels None"),
        (
            ["labels/x1.nii.gz"],
            {},
            r"None of the 1 masks in .*/labels has the name of a scan in .*/images \(x1; scans: 0",
        ),
        (["images/1.nii", "labels/1.nii.gz"], {}, r"Two scans have one name: .*/1.nii"),
        (["labels/1.nii.gz", "labels/1.nii"], {}, r"Two masks have one name: .*/1.nii"),
        (["labels/1.nii.gz"], {"subject": "("}, r"--subject '\(' is not a regular expression"),
        (["labels/1.nii.gz"], {"subject": "p[0-9]"}, r"--subject .* finds nothing in 6 of 6 scans \(images/0.nii.gz"),
    ],
)
def test_two_folders_that_do_not_pair(tmp_path, more, options, message):
    root = tmp_path / "study"
    touch(root, *(f"images/{i}.nii.gz" for i in range(6)), *more)
    with pytest.raises(DatalistError, match=message):
        made("folders", root, **options)


def test_sub_folders_are_part_of_the_names(tmp_path):
    root = tmp_path / "study"
    touch(root, *(f"{d}/p{p}/t1.nii.gz" for p in range(6) for d in ("images", "labels")))
    pairs, subjects, _ = made("folders", root, subject="p[0-9]")
    assert pairs == {f"images/p{p}/t1.nii.gz": f"labels/p{p}/t1.nii.gz" for p in range(6)}
    assert set().union(*subjects.values()) == {f"p{p}" for p in range(6)}


@pytest.mark.parametrize(
    ("name", "folders"), [("decathlon", ("imagesTr", "labelsTr")), ("folders", ("images", "labels"))]
)
def test_frames_of_one_patient_are_not_split(tmp_path, name, folders):
    root = tmp_path / "study"
    touch(root, *(f"{folder}/{file}" for file in frames() for folder in folders))
    with pytest.raises(
        DatalistError, match=r"20 scans seem to belong to 10 subjects \(patient001_frame01, .*--subject"
    ):
        made(name, root)
    for pattern in (r"(patient\d+)_", r"patient\d+", r"([^/]*)[_-][^/]*$"):
        _, subjects, _ = made(name, root, subject=pattern, test=3, validation=2)
        assert [len(subjects[s]) for s in SECTIONS] == [5, 2, 3, 0]
        assert set().union(*subjects.values()) == {f"patient{p:03d}" for p in range(1, 11)}
    _, subjects, _ = made(name, root, subject=".*")
    assert sum(map(len, subjects.values())) == 20


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ("P{0}_v{1}_T1w", r"P\d+"),
        ("P{0}_ses-{1}_T1w", r"P\d+"),
        ("v{1}/P{0}", r"P\d+"),
        ("P{0}/2020010{1}/T1w", r"P\d+"),
        ("2020010{1}_{0}", "[^/_-]*$"),
        ("v{1}/{0}", "[^/]*$"),
        ("ADNI_002_S_00{0}_br_raw_201{1}0101_S1{0}_I{0}{1}", r"\d+_S_\d+"),
    ],
)
def test_visits_of_one_patient_are_not_split_and_the_suggested_pattern_keeps_them_together(tmp_path, form, pattern):
    root = tmp_path / "study"
    names = {form.format(f"{who:02}", visit): who for who in range(1, 11) for visit in (1, 2)}
    touch(root, *(f"{folder}/{name}.nii.gz" for name in names for folder in ("images", "labels")))
    with pytest.raises(DatalistError, match="20 scans seem to belong to 10 subjects") as refused:
        made("folders", root)
    assert f"a regular expression such as '{pattern}', so that" in str(refused.value)
    _, subjects, content = made("folders", root, subject=pattern)
    whose = {
        x["subject"]: names[x["image"].partition("images/")[2].removesuffix(".nii.gz")] for x in content["training"]
    }
    assert sum(map(len, subjects.values())) == 10 and len(set(whose.values())) == len(whose) == len(
        subjects["training"]
    )
    assert not subjects["training"] & (subjects["test"] | subjects["validation"])


def test_names_with_two_readings_need_a_subject(tmp_path):
    root = tmp_path / "study"
    names = [f"{year}/P{who}.nii.gz" for year in (2019, 2020) for who in range(5)]
    touch(root, *(f"{folder}/{name}" for name in names for folder in ("images", "labels")))
    with pytest.raises(
        DatalistError, match=r"^2019/P0 and 2020/P0 may be two visits of one subject or scans of two: name"
    ):
        made("folders", root)
    assert sum(map(len, made("folders", root, subject=".*")[1].values())) == 10


def test_the_subject_of_any_set_can_be_named(tmp_path):
    root = tmp_path / "ixi"
    touch(root, *(f"t1/IXI{i:03d}-HH-{i % 5:04d}-T1.nii.gz" for i in range(10)))
    _, subjects, _ = made("ixi", root, subject=r"HH-(\d+)", test=1, validation=1)
    assert set().union(*subjects.values()) == {f"000{i}" for i in range(5)}


def test_bids_masks_have_all_entities_of_their_scan(tmp_path):
    root = tmp_path / "study"
    scans = ["sub-01_T1w", "sub-01_run-2_T1w", "sub-01_acq-high_run-1_T1w", "sub-02_ses-1_T1w", "sub-02_ses-2_T1w"]
    folder = {name: f"sub-{name[4:6]}/" + (f"ses-{name[11]}/" if "ses" in name else "") + "anat" for name in scans}
    touch(root, *(f"{folder[name]}/{name}.nii.gz" for name in scans), "sub-03/anat/sub-03_T1w.nii.gz")
    masks = [
        "fs/sub-01/anat/sub-01_run-2_dseg",  # not of the scan without a run, whose name it begins with
        "fs/sub-01/anat/sub-01_space-T1w_desc-aseg_dseg",
        "fs/sub-01/anat/sub-01_run-1_acq-high_dseg",
        "fs/sub-02_ses-2_mod-T1w_dseg",
        "fs/sub-02_ses-1_mod-T2w_dseg",
    ]
    touch(root, *(f"derivatives/{name}.nii.gz" for name in masks))
    pairs, _, _ = made("bids", root, validation=0, test=0)
    assert {Path(a).name: b and Path(b).name for a, b in pairs.items()} == {
        "sub-01_T1w.nii.gz": "sub-01_space-T1w_desc-aseg_dseg.nii.gz",
        "sub-01_run-2_T1w.nii.gz": "sub-01_run-2_dseg.nii.gz",
        "sub-01_acq-high_run-1_T1w.nii.gz": "sub-01_run-1_acq-high_dseg.nii.gz",
        "sub-02_ses-2_T1w.nii.gz": "sub-02_ses-2_mod-T1w_dseg.nii.gz",
        "sub-02_ses-1_T1w.nii.gz": None,
        "sub-03_T1w.nii.gz": None,
    }
    touch(root, "derivatives/other/sub-01/anat/sub-01_run-2_desc-x_dseg.nii.gz")
    with pytest.raises(DatalistError, match=r"sub-01_run-2_T1w.nii.gz has several labels"):
        made("bids", root)


@pytest.mark.parametrize("version", [1, 2, None])
@pytest.mark.parametrize("channels", [1, 2])
def test_nnunet(tmp_path, version, channels):
    root = tmp_path / "Dataset001_Heart"
    ends = [f"_{c:04d}.nii.gz" for c in range(channels)]
    touch(root, *(f"imagesTr/la_{i:03d}{end}" for i in range(8) for end in ends))
    touch(root, *(f"labelsTr/la_{i:03d}.nii.gz" for i in range(8)), "labelsTr/la_900.nii.gz")
    touch(root, *(f"imagesTs/la_{i}{end}" for i in (100, 101, 102) for end in ends))
    names = {str(c): f"contrast {c}" for c in range(channels)}
    training = [{"image": f"./imagesTr/la_{i:03d}.nii.gz", "label": f"./labelsTr/la_{i:03d}.nii.gz"} for i in range(8)]
    content = {
        1: {
            "modality": names,
            "labels": {"0": "background"},
            "training": training,
            "test": ["./imagesTs/la_100.nii.gz"],
        },
        2: {"channel_names": names, "labels": {"background": 0}, "numTraining": 8, "file_ending": ".nii.gz"},
    }
    if version:
        (root / "dataset.json").write_text(json.dumps(content[version]))
    pairs, subjects, written = made("decathlon", root, transductive=True)
    expected = {f"imagesTr/la_{i:03d}_0000.nii.gz": f"labelsTr/la_{i:03d}.nii.gz" for i in range(8)}
    assert pairs == expected | {f"imagesTs/la_{i}_0000.nii.gz": None for i in (100, 101, 102)}
    assert subjects["unlabelled"] == {"la_100", "la_101", "la_102"}
    assert written["masks_without_scan"] == ["labelsTr/la_900.nii.gz"]
    images = [x["image"] for s in SECTIONS for x in written[s]]
    assert all(isinstance(x, str) if channels == 1 else len(x) == channels for x in images)
    load_datalist(root.parent / "list.json")


def test_nnunets_files_in_capitals(tmp_path):
    root = tmp_path / "Dataset001_Heart"
    touch(root, *(f"{d}Tr/la_{i}{end}" for i in range(8) for d, end in (("images", "_0000.nii"), ("labels", ".nii"))))
    for file in root.rglob("*.nii"):
        file.rename(file.with_suffix(".NII"))
    (root / "dataset.json").write_text(json.dumps({"channel_names": {"0": "a"}, "file_ending": ".NII"}))
    pairs, _, _ = made("decathlon", root)
    assert pairs == {f"imagesTr/la_{i}_0000.NII": f"labelsTr/la_{i}.NII" for i in range(8)}


def test_nnunets_own_test_scans_stay_the_test_list(tmp_path):
    root = tmp_path / "Dataset001_Heart"
    touch(root, *(f"{d}Tr/la_{i}{end}" for i in range(8) for d, end in (("images", "_0000.nii"), ("labels", ".nii"))))
    touch(root, *(f"{d}Ts/la_{i}{end}" for i in (8, 9) for d, end in (("images", "_0000.nii"), ("labels", ".nii"))))
    _, subjects, _ = made("decathlon", root)
    assert subjects["test"] == {"la_8", "la_9"} and len(subjects["training"]) == 7
    _, subjects, _ = made("decathlon", root, test=1)  # others are drawn when asked for
    assert len(subjects["test"]) == 1


@pytest.mark.parametrize(
    ("description", "spoil", "message"),
    [
        (
            {"channel_names": {"0": "a", "1": "b"}},
            "imagesTr/la_1_0001.nii",
            r"la_1 lacks the channel 0001 of dataset.json",
        ),
        ({"channel_names": {"0": "a"}}, None, r"la_0 has 2 channels, but dataset.json names 1"),
        (
            {"channel_names": {"0": "a"}, "file_ending": ".png"},
            None,
            r"files that end in '.png': convert them to .nii.gz",
        ),
    ],
)
def test_nnunet_that_is_not_whole(tmp_path, description, spoil, message):
    root = tmp_path / "Dataset001_Heart"
    touch(root, *(f"imagesTr/la_{i}_000{c}.nii" for i in range(3) for c in (0, 1)))
    touch(root, *(f"labelsTr/la_{i}.nii" for i in range(3)))
    (root / "dataset.json").write_text(json.dumps(description))
    if spoil:
        (root / spoil).unlink()
    with pytest.raises(DatalistError, match=message):
        made("decathlon", root)


def test_masks_of_other_names_than_all_scans(tmp_path):
    root = tmp_path / "study"
    touch(root, *(f"imagesTr/a{i}.nii.gz" for i in range(3)), *(f"labelsTr/b{i}.nii.gz" for i in range(3)))
    with pytest.raises(
        DatalistError, match=r"None of the 3 masks in .*labelsTr has a scan of its name in imagesTr \(b0"
    ):
        made("decathlon", root)


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("cc359", ["Original/CC0001_philips_15_55_M", "a/CC0001_philips_15_55_M_ss", "b/CC0001_philips_15_55_M_ss"]),
        ("adni", ["ADNI_005_S_2390_MR_I24", "a/MALPEM-ADNI_005_S_2390_MR_I24", "b/MALPEM-ADNI_005_S_2390_MR_I24"]),
    ],
)
def test_two_masks_of_one_name(tmp_path, name, files):
    root = tmp_path / "study"
    touch(root, *(f"{file}.nii.gz" for file in files))
    with pytest.raises(DatalistError, match=r"Two masks have one name: .*/a/.* and .*/b/"):
        made(name, root)


@pytest.mark.parametrize(("subjects", "counts"), [(2, (2, 0, 0)), (3, (1, 1, 1)), (4, (2, 1, 1)), (20, (14, 2, 4))])
def test_few_subjects_still_have_a_validation_list(subjects, counts):
    items = [{"image": f"{number}.nii.gz", "label": "x", "subject": str(number)} for number in range(subjects)]
    lists = split_by_subject(items, 0.1, 0.2, 0)
    assert tuple(len(lists[name]) for name in ("training", "validation", "test")) == counts
