from __future__ import annotations

import inspect
import json
import os
import random
import runpy
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from common.data import DatalistError, load_datalist
from common.data.label_maps import LABEL_SCHEMES
from common.data.prepare import COLLECTORS, merge, prepare, write_datalist
from common.data.prepare.datasets import _LABEL_SCHEME_OF, describe
from common.data.prepare.split import split_by_subject

SECTIONS = ("training", "validation", "test")


def touch(root: Path, *names: str) -> None:
    """Volumes that serve as images (not constant) and as labels (0 and 1)."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image((np.arange(60) % 2).astype(np.uint8).reshape(3, 4, 5), np.eye(4)), path)


def collect(name: str, root: Path, **options) -> list[dict]:
    """Items with paths relative to the root, so that they read easily."""

    def relative(value):
        return [relative(v) for v in value] if isinstance(value, list) else value.relative_to(root).as_posix()

    items = COLLECTORS[name](root, **options)
    return [x | {k: relative(x[k]) for k in ("image", "label") if k in x} for x in items]


# --- the layouts of the sets --------------------------------------------------------------------------------------


def test_acdc(tmp_path):
    names = [f"training/patient{n}/patient{n}_frame{f}" for n in ("001", "002") for f in ("01", "12")]
    touch(tmp_path, *(f"{name}{end}.nii.gz" for name in names for end in ("", "_gt")))
    touch(tmp_path, "training/patient001/patient001_4d.nii.gz", "testing/patient101/patient101_frame01.nii.gz")
    assert collect("acdc", tmp_path) == [
        *({"image": f"{name}.nii.gz", "label": f"{name}_gt.nii.gz", "subject": name.split("/")[1]} for name in names),
        {"image": "testing/patient101/patient101_frame01.nii.gz", "subject": "patient101", "published_test": True},
    ]


def test_ixi_public_layout(tmp_path):
    touch(tmp_path, "IXI-T1/IXI012-HH-1211-T1.nii.gz", "IXI-T1/IXI013-HH-1212-T1.nii.gz")
    touch(tmp_path, "IXI-T1/IXI014-HH-1236-T1.nii.gz", "IXI-T2/IXI012-HH-1211-T2.nii.gz")
    rows = ['IXI_ID,"SEX_ID (1=m, 2=f)",AGE', "12,1,38.78", "12,1,", "13,1,46.71", "14,2,"]
    (tmp_path / "IXI.csv").write_text("\n".join(rows))
    assert collect("ixi", tmp_path) == [
        {"image": "IXI-T1/IXI012-HH-1211-T1.nii.gz", "subject": "IXI012", "age": 38.78},
        {"image": "IXI-T1/IXI013-HH-1212-T1.nii.gz", "subject": "IXI013", "age": 46.71},
        {"image": "IXI-T1/IXI014-HH-1236-T1.nii.gz", "subject": "IXI014"},
    ]


def test_ixi_with_labels_and_participants(tmp_path):
    touch(tmp_path, *(f"{d}/IXI{n}.nii.gz" for d in ("t1", "labels") for n in ("012-HH-1211", "643-HH-2787")))
    rows = ["participant_id\tage\tsex", "IXI012-HH-1211\t38.78\tM", "IXI643-HH-2787\tn/a\tn/a"]
    (tmp_path / "participants.tsv").write_text("\n".join(rows))
    assert collect("ixi", tmp_path) == [
        {"image": f"t1/{n}.nii.gz", "label": f"labels/{n}.nii.gz", "subject": n[:6], **age}
        for n, age in (("IXI012-HH-1211", {"age": 38.78}), ("IXI643-HH-2787", {}))
    ]


def test_oasis1(tmp_path):
    for subject in ("OAS1_0001_MR1", "OAS1_0061_MR1", "OAS1_0061_MR2", "OAS1_0007_MR1"):
        names = ["norm", "orig", "aligned_norm", "seg4", "seg35", "aligned_seg35"]
        touch(tmp_path / f"OASIS_{subject}", *(f"{n}.nii.gz" for n in names))
    (tmp_path / "oasis_cross-sectional.csv").write_text(
        "ID,M/F,Hand,Age,CDR\nOAS1_0001_MR1,F,R,74,0\nOAS1_0061_MR1,F,R,20,\nOAS1_0007_MR1,M,R,80,0.5\n"
    )
    items = collect("oasis1", tmp_path, image="norm,orig", label="seg35")
    assert len(items) == 8
    first = {"label": "OASIS_OAS1_0001_MR1/seg35.nii.gz", "subject": "OAS1_0001", "age": 74.0, "diagnosis": 0}
    assert items[:2] == [{"image": f"OASIS_OAS1_0001_MR1/{n}.nii.gz", **first} for n in ("norm", "orig")]
    by_image = {x["image"]: x for x in items}
    assert by_image["OASIS_OAS1_0007_MR1/norm.nii.gz"]["diagnosis"] == 1
    assert "diagnosis" not in by_image["OASIS_OAS1_0061_MR1/norm.nii.gz"]
    assert by_image["OASIS_OAS1_0061_MR2/norm.nii.gz"]["subject"] == "OAS1_0061"
    aligned = collect("oasis1", tmp_path, image="aligned_norm", label="seg35")
    assert aligned[0]["label"] == "OASIS_OAS1_0001_MR1/aligned_seg35.nii.gz"
    assert collect("oasis1", tmp_path, image="aligned_norm") == aligned  # the masks that serve every task
    assert "label" not in collect("oasis1", tmp_path, image="aligned_norm", label="seg4")[0]  # no aligned_seg4 here
    with pytest.raises(DatalistError, match=r"seg4 and seg35"):
        collect("oasis1", tmp_path, label="seg24")


def test_adni(tmp_path):
    scan = "ADNI_005_S_2390_MR_MT1__GradWarp__N3m_Br_20110701094138392_S112699_I242887"
    other = "ADNI_002_S_0295_MR_MPRAGE_Br_20110101000000000_S1_I999"
    touch(tmp_path, f"ADNI/005_S_2390/MT1/2011-06-27/S112699/{scan}.nii", f"masks/MALPEM-{scan}.nii.gz")
    touch(tmp_path, f"ADNI/002_S_0295/MPRAGE/2011-01-01/S1/{other}.nii")
    table = '"Image Data ID","Subject","Group","Sex","Age"\n"I242887","005_S_2390","LMCI","M","71"\n'
    (tmp_path / "ADNI_search.csv").write_text(table + '"I999","002_S_0295","AD","M","84"\n')
    assert sorted(collect("adni", tmp_path), key=lambda x: x["subject"]) == [
        {
            "image": f"ADNI/002_S_0295/MPRAGE/2011-01-01/S1/{other}.nii",
            "subject": "002_S_0295",
            "age": 84.0,
            "diagnosis": 2,
        },
        {
            "image": f"ADNI/005_S_2390/MT1/2011-06-27/S112699/{scan}.nii",
            "label": f"masks/MALPEM-{scan}.nii.gz",
            "subject": "005_S_2390",
            "age": 71.0,
            "diagnosis": 1,
        },
    ]


def test_adni_of_files_in_capitals(tmp_path):
    scan = "ADNI_005_S_2390_MR_MT1__GradWarp__N3m_Br_20110701094138392_S112699_I242887"
    touch(tmp_path, f"{scan}.nii", f"MALPEM-{scan}.nii.gz")
    for name in (f"{scan}.nii", f"MALPEM-{scan}.nii.gz"):
        stem, dot, ending = name.partition(".")
        (tmp_path / name).rename(tmp_path / f"{stem}{dot}{ending.upper()}")
    (tmp_path / "ADNI_search.csv").write_text('"Image Data ID","Group","Age"\n"I242887","LMCI","71"\n')
    (found,) = collect("adni", tmp_path)
    assert (found["image"], found["label"]) == (f"{scan}.NII", f"MALPEM-{scan}.NII.GZ") and found["age"] == 71


@pytest.mark.parametrize(("masks", "suffix"), [("machine_learning", "ss"), ("staple", "staple")])
def test_cc359(tmp_path, masks, suffix):
    name = "CC0001_philips_15_55_M"
    touch(tmp_path, f"Original/Original/{name}.nii.gz", f"Silver-standard-machine-learning/{name}_ss.nii.gz")
    touch(tmp_path, f"Silver-standard-STAPLE/{name}_staple.nii.gz", f"hippocampus_staple/{name}_staple.nii.gz")
    touch(tmp_path, "Original/Original/CC0121_siemens_3_61_F.nii.gz")
    items = collect("cc359", tmp_path, masks=masks)
    assert [x["subject"] for x in items] == ["CC0001", "CC0121"] and [x["age"] for x in items] == [55.0, 61.0]
    assert items[0]["image"] == f"Original/Original/{name}.nii.gz" and "label" not in items[1]
    assert items[0]["label"].startswith("Silver") and items[0]["label"].endswith(f"{name}_{suffix}.nii.gz")


@pytest.mark.parametrize("with_json", [True, False])
def test_decathlon(tmp_path, with_json):
    touch(tmp_path, *(f"{d}/case_{i}.nii.gz" for d in ("imagesTr", "labelsTr") for i in (1, 2)))
    touch(tmp_path, "imagesTs/case_3.nii.gz")
    if with_json:
        training = [
            {k: f"./{d}/case_{i}.nii.gz" for k, d in (("image", "imagesTr"), ("label", "labelsTr"))} for i in (1, 2)
        ]
        content = {"training": training, "test": ["./imagesTs/case_3.nii.gz"]}
        (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert collect("decathlon", tmp_path) == [
        {"image": "imagesTr/case_1.nii.gz", "label": "labelsTr/case_1.nii.gz", "subject": "case_1"},
        {"image": "imagesTr/case_2.nii.gz", "label": "labelsTr/case_2.nii.gz", "subject": "case_2"},
        {"image": "imagesTs/case_3.nii.gz", "subject": "case_3", "published_test": True},
    ]


def test_decathlon_modalities_in_files_of_their_own(tmp_path):
    touch(tmp_path, *(f"imagesTr/case_{i}_000{m}.nii.gz" for i in (1, 2) for m in (0, 1)))
    touch(tmp_path, *(f"labelsTr/case_{i}.nii.gz" for i in (1, 2)))
    items = collect("decathlon", tmp_path)
    assert [x["subject"] for x in items] == ["case_1", "case_2"]
    assert items[0]["image"] == ["imagesTr/case_1_0000.nii.gz", "imagesTr/case_1_0001.nii.gz"]


def test_hidden_companions_are_no_scans(tmp_path):
    touch(tmp_path, *(f"{d}/case_1.nii.gz" for d in ("imagesTr", "labelsTr")))
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder / "._case_1.nii.gz").write_bytes(b"Mac OS X")
    assert [x["subject"] for x in collect("decathlon", tmp_path)] == ["case_1"]


@pytest.fixture
def brats(tmp_path):
    """A made-up Task01: `dataset.json` in the Decathlon's form, four contrasts in one file of four dimensions."""
    root = tmp_path / "Task01_BrainTumour"
    names = [f"BRATS_{i:03d}" for i in range(1, 41)]
    for name in names:
        touch(root, f"labelsTr/{name}.nii.gz")
    for folder, files in (("imagesTr", names), ("imagesTs", ["BRATS_485", "BRATS_486"])):
        (root / folder).mkdir()
        for name in files:
            image = np.arange(240, dtype=np.float32).reshape(3, 4, 5, 4)
            nib.save(nib.Nifti1Image(image, np.eye(4)), root / folder / f"{name}.nii.gz")
    content = {
        "name": "BRATS",
        "tensorImageSize": "4D",
        "modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"},
        "labels": {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"},
        "numTraining": 40,
        "numTest": 2,
        "training": [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names],
        "test": ["./imagesTs/BRATS_485.nii.gz", "./imagesTs/BRATS_486.nii.gz"],
    }
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def test_decathlon_with_all_contrasts_in_a_file(brats, tmp_path):
    """The 80/15/5 split that SimTROT makes of Task01: shares of the scans with labels."""
    output = tmp_path / "brats.json"
    options = {"validation": 0.15, "test": 0.05, "domain": "brats", "label_scheme": "msd_brats"}
    prepare("decathlon", brats, output, **options)
    lists = load_datalist(output, check="full", num_classes=2, label_scheme="msd_brats")
    assert {k: len(v) for k, v in lists.items()} == {"training": 32, "validation": 6, "test": 2}
    items = [x for section in SECTIONS for x in lists[section]]
    assert sorted(x["subject"] for x in items) == [f"BRATS_{i:03d}" for i in range(1, 41)]
    assert all(nib.load(x["image"]).shape == (3, 4, 5, 4) and x["domain"] == "brats" for x in items)
    assert all(Path(x["image"]).name == Path(x["label"]).name for x in items)
    content = json.loads(output.read_text())
    assert "unlabelled" not in content and content["test_scans_left_out"] == 2
    unlabelled = prepare("decathlon", brats, output, **options, transductive=True, force=True)["unlabelled"]
    assert [x["subject"] for x in unlabelled] == ["BRATS_485", "BRATS_486"]
    with pytest.raises(DatalistError, match=r"'msd_brats', but the config id `label_scheme` is 'freesurfer'"):
        load_datalist(output, label_scheme="freesurfer")


def test_decathlon_finds_a_label_on_another_grid(brats, tmp_path):
    nib.save(nib.Nifti1Image(np.ones((3, 4, 6), np.uint8), np.eye(4)), brats / "labelsTr/BRATS_007.nii.gz")
    with pytest.raises(DatalistError, match=r"labelsTr/BRATS_007.nii.gz: has the shape 3x4x6, but .* has 3x4x5"):
        prepare("decathlon", brats, tmp_path / "a.json")


def test_decathlon_shares_of_the_real_task01():
    lists = split_by_subject([{"image": str(i), "label": "l", "subject": str(i)} for i in range(484)], 0.15, 0.05)
    assert [len(lists[s]) for s in SECTIONS] == [387, 73, 24]  # 79.96, 15.08 and 4.96 %


def spleens(root: Path, count: int = 41) -> list[str]:
    names = [f"spleen_{i}" for i in range(2, 2 + count)][::-1]
    touch(root, *(f"{part}/{name}.nii.gz" for name in names for part in ("imagesTr", "labelsTr")))
    training = [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in names]
    (root / "dataset.json").write_text(json.dumps({"training": training, "test": []}))
    return names


def test_decathlon_has_the_split_of_transseg(tmp_path):
    """The published script, done here: one seed, and a shuffle of every set before that of the spleen."""
    names = spleens(tmp_path / "Task09_Spleen")
    random.seed(1234)
    for cases in (484, 20, 131, 260, 32, 63, 281, 303):
        random.shuffle([None] * cases)
    shuffled = list(names)
    random.shuffle(shuffled)
    made = prepare("decathlon", tmp_path / "Task09_Spleen", tmp_path / "spleen.json", split="transseg")
    for name, wanted in (("training", shuffled[:32]), ("validation", shuffled[32:38]), ("test", shuffled[38:])):
        assert {x["subject"] for x in made[name]} == set(wanted)
        assert len(json.loads((tmp_path / "spleen.json").read_text())[name]) == len(wanted)


@pytest.mark.parametrize(
    ("folder", "count", "options", "message"),
    [
        ("Task09_Spleen", 40, {"split": "transseg"}, "has 40 labelled cases, but the published set has 41"),
        ("spleen", 41, {"split": "transseg"}, "is not named after a set of the Decathlon"),
        ("Task09_Spleen", 41, {"split": "transseg", "test": 3}, "leave out --validation, --test and --seed"),
        ("Task09_Spleen", 41, {"split": "nnunet"}, "has the split 'transseg', not 'nnunet'"),
    ],
)
def test_decathlon_refuses_other_splits(tmp_path, folder, count, options, message):
    spleens(tmp_path / folder, count)
    with pytest.raises(DatalistError, match=message):
        prepare("decathlon", tmp_path / folder, tmp_path / "spleen.json", **options)


def mask(path: Path, *voxels: tuple[int, int, int]) -> None:
    array = np.zeros((3, 4, 5), np.uint8)
    for voxel in voxels:
        array[voxel] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)


def test_visceral_puts_the_masks_of_a_scan_into_one(tmp_path):
    scan, other = "10000100_1_CTce_ThAb", "10000100_2_MRT1_Ab"
    touch(tmp_path / "Volumes", f"{scan}.nii.gz", f"{other}.nii.gz", "10000067_1_CT_wb.nii.gz")
    for name, place in (("1302_7", (0, 0, 0)), ("1302_9", (2, 2, 2)), ("1326_7", (0, 0, 1)), ("58_7", (1, 1, 1))):
        mask(tmp_path / "Segmentations" / f"{scan}_{name}.nii.gz", place)
    mask(tmp_path / "Segmentations" / f"{other}_1302_7.nii.gz", (1, 0, 0))
    found = {Path(x["image"]).name: x for x in collect("visceral", tmp_path, structures="1302,1326")}
    assert [x["subject"] for x in found.values()] == ["10000067", "10000100", "10000100"]
    assert "label" not in found["10000067_1_CT_wb.nii.gz"] and "label" not in found[f"{other}.nii.gz"]
    label = tmp_path / found[f"{scan}.nii.gz"]["label"]
    array = np.asarray(nib.load(label).dataobj)
    assert {tuple(map(int, v)): int(array[tuple(v)]) for v in np.argwhere(array)} == {(0, 0, 0): 1302, (0, 0, 1): 1326}
    made = prepare("visceral", tmp_path, tmp_path / "v.json", validation=0, test=0, structures=(1302, 1326))  # fire's
    assert made["label_scheme"] == "visceral"


def test_visceral_keeps_the_masks_of_other_structures(tmp_path):
    """An earlier datalist names them."""
    touch(tmp_path, "10000100_1_CTce_ThAb.nii.gz")
    for number in (58, 1302, 1326):
        mask(tmp_path / f"10000100_1_CTce_ThAb_{number}_1.nii.gz", (1, number % 4, number % 5))
    asked = {"58": {58}, "1326,1302": {1302, 1326}, "1302,1326,1302": {1302, 1326}, None: {58, 1302, 1326}}
    labels = {}
    for structures in asked:
        (found,) = collect("visceral", tmp_path, structures=structures)
        labels[structures] = tmp_path / found["label"]
    for structures, numbers in asked.items():
        assert set(np.unique(np.asarray(nib.load(labels[structures]).dataobj)).tolist()) == {0, *numbers}


def test_visceral_refuses_masks_that_overlap(tmp_path):
    touch(tmp_path, "10000100_1_CTce_ThAb.nii.gz")
    for number in (58, 86):
        mask(tmp_path / f"10000100_1_CTce_ThAb_{number}_1.nii.gz", (1, 1, 1), (number % 3, 0, 0))
    with pytest.raises(DatalistError, match="overlaps the mask of structure 58: name the structures"):
        collect("visceral", tmp_path)
    assert collect("visceral", tmp_path, structures="58")[0]["label"].startswith("labels_radlex/")


READING = """<readingSession>{}</readingSession>"""
NODULE = """<unblindedReadNodule><noduleID>{number}</noduleID><characteristics><malignancy>{malignancy}</malignancy>
</characteristics>{rois}</unblindedReadNodule>"""
ROI = """<roi><imageZposition>{z}</imageZposition><inclusion>TRUE</inclusion>{edges}</roi>"""
EDGE = "<edgeMap><xCoord>{}</xCoord><yCoord>{}</yCoord></edgeMap>"


def nodule(x: int, y: int, z: float, malignancy: int, radius: int = 2) -> str:
    corners = [(x - radius, y), (x + radius, y), (x, y - radius), (x, y + radius)]
    edges = "".join(EDGE.format(*corner) for corner in corners)
    rois = "".join(ROI.format(z=z + step, edges=edges) for step in (-2.5, 0, 2.5))
    return NODULE.format(number=f"{x} {y}", malignancy=malignancy, rois=rois)


@pytest.fixture
def lidc(tmp_path, write_series):
    """A scan of -1000 HU in which a nodule of 50 HU lies at column 20, row 12, slice 6, and another elsewhere."""
    folder = tmp_path / "LIDC-IDRI-0007/1.3/1.4"
    voxels = np.full((40, 30, 12), -1000)
    voxels[18:23, 10:15, 5:8] = 50
    affine = np.diag([-1.0, -1.0, 2.5, 1.0])
    affine[:3, 3] = 100, 80, -300
    write_series(folder, voxels, affine)
    z = -300 + 6 * 2.5
    sessions = [
        nodule(20, 12, z, 5) + nodule(35, 25, z, 1, radius=1),
        nodule(21, 12, z, 2),
        nodule(20, 13, z, 4),
        "<unblindedReadNodule><noduleID>small</noduleID></unblindedReadNodule>",
    ]
    text = "".join(READING.format(session) for session in sessions)
    (folder / "069.xml").write_text(f'<LidcReadMessage xmlns="http://www.nih.gov">{text}</LidcReadMessage>')
    return tmp_path


@pytest.mark.parametrize(("rule", "rating"), [("median", 4), ("mean", 11 / 3), ("highest", 5)])
def test_lidc_cuts_nodules_out_and_joins_the_ratings(lidc, rule, rating):
    (found,) = collect("lidc", lidc, rule=rule, side=16)
    assert found["malignancy"] == pytest.approx(rating) and found["raters"] == 3
    assert found["subject"] == "LIDC-IDRI-0007"
    cube = nib.load(lidc / found["image"])
    array = np.asarray(cube.dataobj)
    assert set(np.unique(array)) == {-1000, 50} and (array == 50).sum() == 5 * 5 * 3
    middle = cube.affine @ [*np.argwhere(array == 50).mean(0), 1]
    assert middle[:3] == pytest.approx([100 - 20, 80 - 12, -300 + 15])


def test_lidc_cubes_that_are_kept_are_those_of_their_nodules(lidc):
    """Where a nodule of fewer raters comes first, other raters renumber the rest; another side is another cube."""
    file = lidc / "LIDC-IDRI-0007/1.3/1.4/069.xml"
    lone = READING.format(nodule(35, 25, -300 + 6 * 2.5, 1, radius=1))
    file.write_text(file.read_text().replace("<readingSession>", f"{lone}<readingSession>", 1))

    def cubes(**options) -> list[tuple[float, tuple[int, ...], bool]]:
        found = []
        for x in collect("lidc", lidc, **options):
            array = np.asarray(nib.load(lidc / x["image"]).dataobj)
            found.append((x["malignancy"], array.shape, 50 in array))
        return found

    assert cubes(raters=3, side=8) == [(4, (9, 9, 5), True)]
    assert cubes(raters=1, side=8) == [(1, (9, 9, 5), False), (4, (9, 9, 5), True)]
    assert cubes(raters=3, side=16) == [(4, (17, 17, 7), True)]


def test_lidc_rule_of_the_raters(lidc):
    both = collect("lidc", lidc, raters=1)
    assert [x["raters"] for x in both] == [3, 1]
    for x in both:  # with the cubes of 72 mm, which take in all of this scan
        assert set(np.unique(np.asarray(nib.load(lidc / x["image"]).dataobj))) == {-1000, 50}
    assert collect("lidc", lidc, raters=4) == []
    with pytest.raises(DatalistError, match="rules median, mean, highest"):
        collect("lidc", lidc, rule="first")
    (lidc / "LIDC-IDRI-0007/1.3/1.4/069.xml").write_text("<LidcReadMessage>")
    with pytest.raises(DatalistError, match=r"069\.xml: .*download it again"):
        collect("lidc", lidc)


BTCV = [f"{i:04d}" for i in (*range(1, 11), *range(21, 41))]
BTCV_TEST = ["0001", "0002", "0003", "0004", "0008", "0022", "0025", "0029", "0032", "0035", "0036", "0038"]


def btcv(root, images="img", labels="label", image="img{}", label="label{}", numbers=BTCV):
    for n in numbers:
        touch(root, f"{images}/{image.format(n)}.nii.gz", f"{labels}/{label.format(n)}.nii.gz")


@pytest.mark.parametrize(
    ("images", "labels", "image", "label"),
    [
        ("RawData/Training/img", "RawData/Training/label", "img{}", "label{}"),
        ("img", "label", "img{}", "label{}"),
        ("imagesTr", "labelsTr", "img{}", "label{}"),
        ("imagesTr", "labelsTr", "img{}_0000", "img{}"),
        ("Abdomen/images", "Abdomen/Labels", "img{}", "img{}"),
    ],
)
def test_synapse_layouts(tmp_path, images, labels, image, label):
    btcv(tmp_path, images, labels, image, label, numbers=["0001", "0021"])
    # Not of the set as it is split: registered pairs, averaged scans, companions of macOS.
    touch(tmp_path, "Reg/img/img0001-0021.nii.gz", "Reg/label/label0001-0021.nii.gz", f"{images}/DET0000101_avg.nii.gz")
    (tmp_path / images / "._img0001.nii.gz").write_bytes(b"Mac OS X")
    assert collect("synapse", tmp_path) == [
        {
            "image": f"{images}/{image.format(n)}.nii.gz",
            "label": f"{labels}/{label.format(n)}.nii.gz",
            "subject": n,
        }
        for n in ("0001", "0021")
    ]


def test_synapse_scans_without_labels(tmp_path):
    btcv(tmp_path, "RawData/Training/img", "RawData/Training/label", numbers=["0001"])
    touch(tmp_path, "RawData/Testing/img/img0061.nii.gz")
    scan = {"image": "RawData/Testing/img/img0061.nii.gz", "subject": "0061", "published_test": True}
    assert collect("synapse", tmp_path)[1] == scan


@pytest.mark.parametrize(("images", "labels"), [("imagesTr", "labelsTr"), ("img", "label")])
def test_synapse_test_scans_may_lie_twice_as_nnformer_wants_them(tmp_path, images, labels):
    btcv(tmp_path, images, labels, numbers=["0001", "0005"])
    btcv(tmp_path, "imagesTs", "labelsTs", numbers=["0001", "0002"])
    items = collect("synapse", tmp_path)
    folders = [(images, labels, "0001"), ("imagesTs", "labelsTs", "0002"), (images, labels, "0005")]
    assert [x["image"] for x in items] == [f"{folder}/img{n}.nii.gz" for folder, _, n in folders]
    assert [x["label"] for x in items] == [f"{folder}/label{n}.nii.gz" for _, folder, n in folders]


@pytest.mark.parametrize(("file", "what"), [("copy/img0001.nii.gz", "images"), ("copy/label0001.nii", "labels")])
def test_synapse_two_files_of_one_number(tmp_path, file, what):
    btcv(tmp_path, numbers=["0001"])
    touch(tmp_path, file)
    with pytest.raises(DatalistError, match=f"Two {what} have the number 0001: .* and .*; keep one of them"):
        collect("synapse", tmp_path)


def test_synapse_has_the_published_split(tmp_path):
    btcv(tmp_path / "btcv")
    touch(tmp_path / "btcv", "Testing/img/img0061.nii.gz")
    content = prepare("synapse", tmp_path / "btcv", tmp_path / "a.json", seed=3)
    lists = load_datalist(tmp_path / "a.json", label_scheme="btcv")
    assert {k: len(v) for k, v in lists.items()} == {"training": 18, "validation": 0, "test": 12}
    assert [x["subject"] for x in lists["test"]] == BTCV_TEST
    assert [x["subject"] for x in lists["training"]] == [n for n in BTCV if n not in BTCV_TEST]
    assert "unlabelled" not in content and content["label_scheme"] == "btcv"
    assert {x["domain"] for x in lists["training"]} == {"synapse"}


def split_of(content):
    return {name: {x["subject"] for x in content[name]} for name in SECTIONS}


@pytest.mark.parametrize(("validation", "count"), [(3, 3), (0.1, 3), (17, 17)])
def test_synapse_validation_comes_from_the_training_scans(tmp_path, validation, count):
    btcv(tmp_path / "btcv")
    found = split_of(prepare("synapse", tmp_path / "btcv", tmp_path / "a.json", validation=validation))
    assert found["test"] == set(BTCV_TEST) and len(found["validation"]) == count
    assert found["training"] | found["validation"] == set(BTCV) - set(BTCV_TEST)


def test_synapse_other_test_scans_are_drawn(tmp_path):
    btcv(tmp_path / "btcv")
    content = prepare("synapse", tmp_path / "btcv", tmp_path / "a.json", validation=2, test=6)
    assert [len(content[s]) for s in SECTIONS] == [22, 2, 6]
    assert not split_of(content)["test"] <= set(BTCV_TEST)


def test_synapse_validation_is_drawn_by_seed(tmp_path):
    btcv(tmp_path / "btcv")
    drawn = []
    for seed in (0, 0, 1):
        content = prepare("synapse", tmp_path / "btcv", tmp_path / "a.json", validation=3, seed=seed, force=True)
        drawn.append(split_of(content)["validation"])
    assert drawn[0] == drawn[1] != drawn[2]


def test_synapse_without_some_of_its_test_scans(tmp_path):
    btcv(tmp_path / "btcv", numbers=[n for n in BTCV if n not in ("0003", "0025")])
    touch(tmp_path / "btcv", "img/img0003.nii.gz")
    with pytest.raises(DatalistError, match=r"2 of the 12 published test subjects .*\(0003, 0025\): complete") as error:
        prepare("synapse", tmp_path / "btcv", tmp_path / "a.json")
    assert "\n" not in str(error.value) and not (tmp_path / "a.json").exists()
    prepare("synapse", tmp_path / "btcv", tmp_path / "a.json", test=4)


def test_synapse_validation_cannot_take_all(tmp_path):
    btcv(tmp_path / "btcv")
    with pytest.raises(DatalistError, match="18 validation and 12 test subjects leave none of 30"):
        prepare("synapse", tmp_path / "btcv", tmp_path / "a.json", validation=18)


ABIDE = ["participant_id\tAGE_AT_SCAN \tDX_GROUP"]  # the table of ABIDE II has that space


def abide(root):
    """Two sites; in the tables participants have neither `sub-` nor leading zeros."""
    one, two = root / "RawDataBIDS/NYU", root / "ABIDE2/ABIDEII-NYU_1"
    touch(one, *(f"sub-005100{n}/anat/sub-005100{n}_T1w.nii.gz" for n in range(6)))
    touch(one, "sub-0051000/func/sub-0051000_task-rest_bold.nii.gz")
    touch(two, *(f"sub-29177/ses-{n}/anat/sub-29177_ses-{n}_T1w.nii.gz" for n in (1, 2)))
    rows = ["51000\t13\t2", "51001\t12.9\t2", "51002\t30.5\t1", "51003\t40\t2", "51004\tn/a\t2"]
    (one / "participants.tsv").write_text("\n".join(ABIDE + rows))
    (two / "participants.tsv").write_text("\n".join([*ABIDE, "sub-29177\t21\t2"]))


def test_abide_healthy_and_13_or_older(tmp_path):
    abide(tmp_path)
    site = "RawDataBIDS/NYU"
    assert sorted(collect("abide", tmp_path), key=lambda x: x["age"]) == [
        {"image": f"{site}/sub-0051000/anat/sub-0051000_T1w.nii.gz", "subject": "NYU/sub-0051000", "age": 13.0},
        *(
            {
                "image": f"ABIDE2/ABIDEII-NYU_1/sub-29177/ses-{n}/anat/sub-29177_ses-{n}_T1w.nii.gz",
                "subject": "ABIDEII-NYU_1/sub-29177",
                "age": 21.0,
            }
            for n in (1, 2)
        ),
        {"image": f"{site}/sub-0051003/anat/sub-0051003_T1w.nii.gz", "subject": "NYU/sub-0051003", "age": 40.0},
    ]


@pytest.mark.parametrize(
    ("options", "subjects"),
    [
        ({"controls": False}, ["0051000", "0051002", "0051003", "29177", "29177"]),
        ({"min_age": 20}, ["0051003", "29177", "29177"]),
        ({"min_age": 0}, ["0051000", "0051001", "0051003", "0051004", "29177", "29177"]),
        # 0051005 stands in no table.
        (
            {"min_age": 0, "controls": False},
            ["0051000", "0051001", "0051002", "0051003", "0051004", "0051005", "29177", "29177"],
        ),
    ],
)
def test_abide_others(tmp_path, options, subjects):
    abide(tmp_path)
    items = collect("abide", tmp_path, **options)
    assert sorted(x["subject"].partition("/sub-")[2] for x in items) == subjects
    assert all("age" not in x for x in items if x["subject"].endswith(("004", "005")))


def test_abide_negative_ages_are_none(tmp_path):
    abide(tmp_path)
    table = tmp_path / "RawDataBIDS/NYU/participants.tsv"
    table.write_text(table.read_text().replace("40", "-9999"))
    assert {x["age"] for x in collect("abide", tmp_path)} == {13.0, 21.0}
    ages = {x["subject"]: x.get("age") for x in collect("abide", tmp_path, min_age=0)}
    assert ages["NYU/sub-0051003"] is None and ages["NYU/sub-0051001"] == 12.9


def test_abide_visits_have_their_own_ages(tmp_path):
    abide(tmp_path)
    rows = ["participant_id\tsession_id\tAGE_AT_SCAN\tDX_GROUP", "29177\tses-1\t21\t2", "29177\tses-2\t23\t2"]
    (tmp_path / "ABIDE2/ABIDEII-NYU_1/participants.tsv").write_text("\n".join(rows))
    assert [x["age"] for x in collect("abide", tmp_path) if "29177" in x["subject"]] == [21.0, 23.0]


@pytest.mark.parametrize(
    ("other", "subjects"),
    [("UCLA_Long", {"UCLA_1/sub-0051201"}), ("UCLA_2", {"UCLA_1/sub-0051201", "UCLA_2/sub-51201"})],
)
def test_abide_equal_numbers_are_one_person_in_a_longitudinal_collection(tmp_path, caplog, other, subjects):
    """They counted as two, so that one person could be in training and in test."""
    for site, name, age in (("UCLA_1", "sub-0051201", 12), (other, "sub-51201", 15)):
        touch(tmp_path / site, f"{name}/anat/{name}_T1w.nii.gz")
        (tmp_path / site / "participants.tsv").write_text(f"participant_id\tage_at_scan\tdx_group\n51201\t{age}\t2")
    assert {x["subject"] for x in collect("abide", tmp_path, min_age=0)} == subjects
    # the name is the same where the first visit is left out
    assert [x["subject"] for x in collect("abide", tmp_path)] == [max(subjects)]
    assert ("several people: 51201 (UCLA_1, UCLA_2)" in caplog.text) == (other == "UCLA_2")


def test_abide_scans_of_one_subject_stay_together(tmp_path):
    abide(tmp_path / "a")
    content = prepare("abide", tmp_path / "a", tmp_path / "a.json", validation=1, test=1)
    found = split_of(content)
    assert sum(len(subjects) for subjects in found.values()) == len(set().union(*found.values())) == 3
    assert "label_scheme" not in content and all(x["domain"] == "abide" for x in content["training"])


def brats_subject(root, name, contrasts=("flair", "t1", "t1ce", "t2", "seg")):
    touch(root, *(f"{name}/{Path(name).name}_{contrast}.nii.gz" for contrast in contrasts))


@pytest.mark.parametrize("folder", ["MICCAI_BraTS2020_TrainingData", "HGG", "."])
def test_brats_has_the_contrasts_in_the_decathlons_order(tmp_path, folder):
    names = [f"{folder}/BraTS20_Training_00{n}" for n in (2, 1)]
    for name in names:
        brats_subject(tmp_path, name)
    brats_subject(tmp_path, "BraTS20_Validation_001", ("flair", "t1", "t1ce", "t2"))
    items = {x["subject"]: x for x in collect("brats", tmp_path)}
    subject, file = "BraTS20_Training_001", (tmp_path / names[1]).relative_to(tmp_path).as_posix()
    assert items[subject] == {
        "image": [f"{file}/{subject}_{contrast}.nii.gz" for contrast in ("flair", "t1", "t1ce", "t2")],
        "label": f"{file}/{subject}_seg.nii.gz",
        "subject": subject,
    }
    assert len(items) == 3 and "label" not in items["BraTS20_Validation_001"]


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("acdc", ["testing/patient101/patient101_frame01.nii.gz"]),
        ("brats", [f"Validation/Brats18_A_1/Brats18_A_1_{c}.nii.gz" for c in ("flair", "t1", "t1ce", "t2")]),
        ("decathlon", ["imagesTs/case_9.nii.gz"]),
        ("synapse", ["Testing/img/img0061.nii.gz"]),
        ("synapse", ["img/img0080.nii.gz"]),  # of this number wherever it lies
    ],
)
def test_published_test_scans_are_no_scans_for_pretraining(tmp_path, capsys, name, files):
    """Weights that have seen the scans that a challenge ranks by are not to be ranked by them."""
    root, output = tmp_path / "set", tmp_path / "a.json"
    labelled = {
        "acdc": [f"training/p/patient00{n}_frame01{end}.nii.gz" for n in range(4) for end in ("", "_gt")],
        "brats": [f"s{n}/s{n}_{c}.nii.gz" for n in range(4) for c in ("flair", "t1", "t1ce", "t2", "seg")],
        "decathlon": [f"{folder}Tr/case_{n}.nii.gz" for n in range(4) for folder in ("images", "labels")],
        "synapse": [f"{what}/{what}000{n}.nii.gz" for n in range(4) for what in ("img", "label")],
    }[name]
    touch(root, *files)
    options = {"validation": 1, "test": 1}
    with pytest.raises(DatalistError, match=r"All 1 scans below .* published test part, .* --transductive True"):
        prepare(name, root, output, **options)
    touch(root, *labelled)
    content = prepare(name, root, output, **options)
    assert "unlabelled" not in content and content["test_scans_left_out"] == 1
    assert [len(content[section]) for section in SECTIONS] == [2, 1, 1] and content["left_out"] == 0
    assert "1 scans of the published test part" in describe(content)
    content = prepare(name, root, output, **options, transductive=True, force=True)
    assert [Path(np.atleast_1d(x["image"])[0]) for x in content["unlabelled"]] == [root / files[0]]
    assert "test_scans_left_out" not in content


def test_acdcs_testing_patients_are_the_test_list(tmp_path):
    names = [f"{part}/p/patient{n}_frame01" for part, n in (("training", f"00{i}") for i in range(5))]
    names += ["testing/p/patient101_frame01"]
    touch(tmp_path / "acdc", *(f"{name}{end}.nii.gz" for name in names for end in ("", "_gt")))
    content = prepare("acdc", tmp_path / "acdc", tmp_path / "a.json", validation=1)
    assert split_of(content)["test"] == {"patient101"} and len(content["training"]) == 4


def test_brats_finds_the_mask_of_subject_355(tmp_path):
    name = "BraTS20_Training_355"
    brats_subject(tmp_path, name, ("flair", "t1", "t1ce", "t2"))
    touch(tmp_path, f"{name}/W39_1998.09.19_Segm.nii")
    assert collect("brats", tmp_path)[0]["label"] == f"{name}/W39_1998.09.19_Segm.nii"


def test_brats_lacks_a_contrast(tmp_path):
    brats_subject(tmp_path, "BraTS20_Training_001", ("flair", "t1", "seg"))
    with pytest.raises(DatalistError, match=r"BraTS20_Training_001 lacks t1ce, t2: complete or remove") as error:
        collect("brats", tmp_path)
    assert "\n" not in str(error.value)


def test_brats_states_its_label_scheme(tmp_path):
    for number in range(4):
        brats_subject(tmp_path / "b", f"BraTS20_Training_00{number}")
    prepare("brats", tmp_path / "b", tmp_path / "a.json", validation=1, test=1)
    lists = load_datalist(tmp_path / "a.json", check="full", label_scheme="brats2020", known_labels={0, 1, 2, 4})
    assert [len(lists[s]) for s in SECTIONS] == [2, 1, 1] and len(lists["test"][0]["image"]) == 4
    with pytest.raises(DatalistError, match=r"'brats2020', but the config id `label_scheme` is 'msd_brats'"):
        load_datalist(tmp_path / "a.json", label_scheme="msd_brats")


def test_bids(tmp_path):
    touch(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_T2w.nii.gz")
    touch(tmp_path, *(f"sub-02/ses-{s}/anat/sub-02_ses-{s}_T1w.nii.gz" for s in (1, 2)))
    touch(tmp_path, "derivatives/fs/sub-02/ses-2/anat/sub-02_ses-2_desc-aseg_dseg.nii.gz")
    touch(tmp_path, "derivatives/fs/sub-01/anat/sub-01_space-T1w_desc-aseg_dseg.nii.gz")
    touch(tmp_path, "derivatives/fs/sub-01/anat/sub-01_desc-brain_mask.nii.gz")
    rows = ["participant_id\tage\tsex\tgroup", "sub-01\t31\tF\tpatient", "sub-02\tn/a\tM\tcontrol"]
    (tmp_path / "participants.tsv").write_text("\n".join(rows))
    items = collect("bids", tmp_path)
    assert items == [
        {
            "image": "sub-01/anat/sub-01_T1w.nii.gz",
            "label": "derivatives/fs/sub-01/anat/sub-01_space-T1w_desc-aseg_dseg.nii.gz",
            "subject": "sub-01",
            "age": 31.0,
            "diagnosis": 1,
        },
        {"image": "sub-02/ses-1/anat/sub-02_ses-1_T1w.nii.gz", "subject": "sub-02", "diagnosis": 0},
        {
            "image": "sub-02/ses-2/anat/sub-02_ses-2_T1w.nii.gz",
            "label": "derivatives/fs/sub-02/ses-2/anat/sub-02_ses-2_desc-aseg_dseg.nii.gz",
            "subject": "sub-02",
            "diagnosis": 0,
        },
    ]
    assert collect("bids", tmp_path, label_pattern="*_mask")[0]["label"].endswith("desc-brain_mask.nii.gz")
    assert collect("bids", tmp_path, diagnoses="patient,control")[0]["diagnosis"] == 0
    with pytest.raises(DatalistError, match=r"diagnoses control, patient"):
        collect("bids", tmp_path, diagnoses="patient,healthy")
    with pytest.raises(DatalistError, match=r"has several labels"):
        collect("bids", tmp_path, label_pattern="*")
    assert [x["image"] for x in collect("bids", tmp_path, suffix="T2w")] == ["sub-01/anat/sub-01_T2w.nii.gz"]


@pytest.fixture
def visited(tmp_path):
    """Two people with two visits each."""
    touch(tmp_path, *(f"sub-0{n}/ses-0{v}/anat/sub-0{n}_ses-0{v}_T1w.nii.gz" for n in (1, 2) for v in (1, 2)))
    return tmp_path


def ages_and_diagnoses(root):
    return [(x["subject"], x.get("age"), x.get("diagnosis")) for x in collect("bids", root)]


@pytest.mark.parametrize("session", ["ses-0{}", "ses-{}", "{}"])
def test_bids_rows_of_visits(visited, session):
    """Both visits had the age and diagnosis of the last row."""
    rows = [f"sub-0{n}\t{session.format(v)}\t{50 + 10 * v + n}\t{v}" for n in (1, 2) for v in (1, 2)]
    (visited / "participants.tsv").write_text("\n".join(["participant_id\tsession_id\tage\tgroup", *rows]))
    assert ages_and_diagnoses(visited) == [(f"sub-0{n}", 50 + 10 * v + n, v) for n in (1, 2) for v in (1, 2)]


def test_bids_sessions_come_before_participants(visited):
    """A column that the sessions lack comes from the participant; an empty cell of theirs stays empty."""
    rows = ["participant_id\tage\tgroup", "sub-01\t60\t1", "sub-02\t70\t0"]
    (visited / "participants.tsv").write_text("\n".join(rows))
    (visited / "sub-01/sub-01_sessions.tsv").write_text("session_id\tage\nses-01\t61.5\nses-02\tn/a")
    (visited / "sub-02/sub-02_sessions.tsv").write_text("session_id\tage\tdiagnosis\nses-02\t72\t3")
    found = [("sub-01", 61.5, 1), ("sub-01", None, 1), ("sub-02", 70, 0), ("sub-02", 72, 3)]
    assert ages_and_diagnoses(visited) == found


def test_bids_rows_without_a_visit_must_agree(visited):
    table = visited / "participants.tsv"
    table.write_text("participant_id\tage\tscanner\nsub-01\t60\ta\nsub-01\t60\tb\n\t\t\n\t1\t")
    assert [age for _, age, _ in ages_and_diagnoses(visited)] == [60, 60, None, None]
    table.write_text("participant_id\tage\nsub-01\t60\nsub-01\t62")
    with pytest.raises(DatalistError, match=r"participants.tsv has several rows of sub-01, which differ in age: keep"):
        collect("bids", visited)
    table.write_text("participant_id\tsession\tage\nsub-01\t1\t60\nsub-01\t01\t62")
    with pytest.raises(DatalistError, match=r"several rows of the session 1 of sub-01, which differ in age"):
        collect("bids", visited)


def test_bids_numbers_only_the_diagnoses_of_images(visited):
    """Groups of participants that the sessions overrule were numbered as well."""
    rows = ["participant_id\tgroup", "sub-01\tcohortA", "sub-02\tcohortB", "sub-03\tunseen"]
    (visited / "participants.tsv").write_text("\n".join(rows))
    for number, diagnoses in ((1, ("healthy", "impaired")), (2, ("healthy", "healthy"))):
        rows = ["session_id\tdiagnosis", *(f"ses-{v}\t{d}" for v, d in enumerate(diagnoses, 1))]
        (visited / f"sub-0{number}/sub-0{number}_sessions.tsv").write_text("\n".join(rows))
    assert [x["diagnosis"] for x in collect("bids", visited)] == [0, 1, 0, 0]
    assert [x["diagnosis"] for x in collect("bids", visited, diagnoses="impaired,healthy")] == [1, 0, 1, 1]
    with pytest.raises(DatalistError, match=r"images have the diagnoses healthy, impaired"):
        collect("bids", visited, diagnoses="healthy")


@pytest.mark.parametrize(
    ("rows", "ages", "warned"),
    [
        ("session 01:2:60 02:2:70", [60, 60, 70, 70], True),
        ("ses 01:3:60 02:1:70", [60, 60, 70, 70], True),
        ("session 01:first:60 02::70", [60, 60, 70, 70], True),
        ("session 01::60 02::70", [60, 60, 70, 70], False),
        ("session 01:1:60 01:2:62 02:2:70", [60, 62, None, 70], False),
        ("ses 01:ses-01:60 01:ses-02:62 02:ses-03:70", [60, 62, None, None], False),
        ("session_id 01:2:60 02:2:70", [None, 60, None, 70], False),
    ],
)
def test_bids_a_column_that_counts_sessions_names_none(visited, caplog, rows, ages, warned):
    """Images of other sessions lost their ages."""
    column, *cells = rows.split()
    text = ["\t".join(("sub-" + row).split(":")) for row in cells]
    (visited / "participants.tsv").write_text("\n".join([f"participant_id\t{column}\tage", *text]))
    assert [age for _, age, _ in ages_and_diagnoses(visited)] == ages
    assert (f"its column `{column}` does not tell them apart (sub-01" in caplog.text) == warned


def test_bids_a_column_that_names_other_sessions_leaves_rows_that_differ(visited):
    rows = ["participant_id\tsession\tage", "sub-01\tfirst\t60", "sub-01\tsecond\t62"]
    (visited / "participants.tsv").write_text("\n".join(rows))
    with pytest.raises(
        DatalistError, match=r"several rows of sub-01, which differ in age: keep one, or name the visit"
    ):
        collect("bids", visited)


def test_bids_an_image_without_a_session(tmp_path):
    touch(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz")
    table = tmp_path / "participants.tsv"
    table.write_text("participant_id\tsession_id\tage\nsub-01\t1\t60")
    assert ages_and_diagnoses(tmp_path) == [("sub-01", 60, None)]
    table.write_text("participant_id\tsession_id\tage\nsub-01\t1\t60\nsub-01\t2\t62")
    with pytest.raises(DatalistError, match=r"sub-01_T1w.nii.gz is of no session, but the tables have 2 sessions"):
        collect("bids", tmp_path)


# --- the split ----------------------------------------------------------------------------------------------------


def made_up(subjects=20, visits=2, labelled=None):
    return [
        {"image": f"/d/{s}_{v}.nii.gz", "subject": f"p{s:02d}"} | ({"label": "/d/l"} if s < (labelled or 999) else {})
        for s in range(subjects)
        for v in range(visits)
    ]


def subjects_of(lists):
    return {name: {x["subject"] for x in items} for name, items in lists.items()}


@pytest.mark.parametrize(
    ("validation", "test", "counts"), [(0.1, 0.2, (14, 2, 4)), (3, 5, (12, 3, 5)), (0, 0, (20, 0, 0))]
)
def test_split_is_by_subject_and_seeded(validation, test, counts):
    items = made_up()
    lists = split_by_subject(items, validation, test)
    found = subjects_of(lists)
    assert tuple(len(found[s]) for s in SECTIONS) == counts
    assert sum(len(v) for v in lists.values()) == len(items)
    assert not found["training"] & found["test"] and not found["validation"] & (found["training"] | found["test"])
    assert split_by_subject(list(reversed(items)), validation, test)["test"][::-1] == lists["test"]
    if test:
        assert split_by_subject(items, validation, test, seed=1) != lists


def test_unlabelled_subjects_are_for_pretraining():
    items = made_up(20, 2, labelled=10)
    del items[0]["label"]  # one visit of a labelled subject
    lists = split_by_subject(items, 2, 3)
    found = subjects_of(lists)
    assert all("label" in x for s in SECTIONS for x in lists[s])
    assert {f"p{i:02d}" for i in range(10, 20)} <= found["unlabelled"]
    assert not found["unlabelled"] & (found["validation"] | found["test"])
    assert found["training"] | found["validation"] | found["test"] == {f"p{i:02d}" for i in range(10)}


@pytest.mark.parametrize(
    ("validation", "test", "message"), [(10, 10, "leave none of 20"), (-1, 0, "`validation` is -1")]
)
def test_impossible_splits(validation, test, message):
    with pytest.raises(DatalistError, match=message):
        split_by_subject(made_up(), validation, test)


# --- writing ------------------------------------------------------------------------------------------------------


@pytest.fixture
def ixi(tmp_path):
    root = tmp_path / "ixi"
    touch(root, *(f"{d}/IXI{i:03d}-HH-1000.nii.gz" for d in ("t1", "labels") for i in range(10)))
    (root / "participants.tsv").write_text("participant_id\tage\nIXI003-HH-1000\t30\nIXI004-HH-1000\t31\n")
    return root


def test_what_is_written_loads(ixi, tmp_path):
    output = tmp_path / "lists/ixi.json"
    prepare("ixi", ixi, output)
    lists = load_datalist(output, check="full", num_classes=2)
    assert [len(lists[s]) for s in SECTIONS] == [7, 1, 2]
    assert all(x["domain"] == "ixi" for items in lists.values() for x in items)
    text = output.read_text()
    assert str(tmp_path) not in text and '"../ixi/t1/IXI0' in text
    assert [p.name for p in output.parent.iterdir()] == ["ixi.json"]
    mask = os.umask(0)
    os.umask(mask)
    assert output.stat().st_mode & 0o777 == 0o666 & ~mask
    again = tmp_path / "lists/again.json"
    prepare("ixi", ixi, again)
    assert again.read_text() == text


@pytest.mark.parametrize(
    ("options", "label_scheme"),
    [({}, "oasis_seg35"), ({"label": "seg4"}, "oasis_seg4"), ({"label_scheme": "freesurfer"}, "freesurfer")],
)
def test_the_label_scheme_is_that_of_the_masks(tmp_path, options, label_scheme):
    names = ("norm", "seg4", "seg35")
    touch(tmp_path / "o", *(f"OASIS_OAS1_000{i}_MR1/{n}.nii.gz" for i in range(4) for n in names))
    prepare("oasis1", tmp_path / "o", tmp_path / "a.json", validation=1, test=1, **options)
    load_datalist(tmp_path / "a.json", label_scheme=label_scheme)
    with pytest.raises(DatalistError, match=f"{label_scheme!r}.* `label_scheme` is 'dlmuse'"):
        load_datalist(tmp_path / "a.json", label_scheme="dlmuse")


def test_the_documented_overlays_take_the_label_schemes_that_are_written(tmp_path):
    bundles = Path(__file__).parents[2] / "bundles"
    documented = set()
    for name, published in _LABEL_SCHEME_OF.items():
        written = published.format(label=inspect.signature(COLLECTORS["oasis1"]).parameters["label"].default)
        assert written in LABEL_SCHEMES
        for overlay in bundles.glob(f"*/configs/datasets/{name}.json"):
            content = json.loads(overlay.read_text())
            # None where the labels are ages or diagnoses; SimTROT's `brats` is the Decathlon's Task01.
            if "label_scheme" in content and content["label_scheme"] != "msd_brats":
                assert content["label_scheme"] == written
                documented.add((overlay.parents[2].name, name))
    assert documented >= {
        *(("pretrain_once", name) for name in ("adni", "cc359", "oasis1")),
        ("medical_transformer", "brats"),
        ("simtrot", "synapse"),
        ("ssl3d", "acdc"),
        ("transseg", "acdc"),
    }


def test_a_label_scheme_that_is_not_known_is_not_written(ixi, tmp_path):
    assert "label_scheme" not in prepare("ixi", ixi, tmp_path / "a.json")
    assert prepare("ixi", ixi, tmp_path / "b.json", label_scheme="dlmuse")["label_scheme"] == "dlmuse"
    with pytest.raises(DatalistError, match=r"Unknown label scheme 'muse'; known are .*dlmuse"):
        prepare("ixi", ixi, tmp_path / "c.json", label_scheme="muse")
    write_datalist(tmp_path / "c.json", merge([tmp_path / "a.json", tmp_path / "a.json"]))
    assert "label_scheme" not in json.loads((tmp_path / "c.json").read_text())
    assert merge([tmp_path / "b.json", tmp_path / "b.json"])["label_scheme"] == "dlmuse"


def test_required_keys_and_domain(ixi, tmp_path):
    content = prepare("ixi", ixi, tmp_path / "a.json", require="age,label", validation=0, test=1, domain="HH")
    as_list = prepare("ixi", ixi, tmp_path / "list.json", require="['age', label]", validation=0, test=1, domain="HH")
    assert as_list["training"] == content["training"] and as_list["test"] == content["test"]
    assert [len(content[s]) for s in SECTIONS] == [1, 0, 1] and content["left_out"] == 8
    assert content["test"][0]["domain"] == "HH"
    with pytest.raises(DatalistError, match=r"None of the 10 scans .* has diagnosis"):
        prepare("ixi", ixi, tmp_path / "b.json", require="diagnosis")


def test_required_ages_are_labels_with_a_mask_or_without(ixi, tmp_path):
    for number in range(3, 10):
        (ixi / f"labels/IXI{number:03d}-HH-1000.nii.gz").unlink()
    ages = "".join(f"IXI{number:03d}-HH-1000\t{20 + number}\n" for number in range(9))
    (ixi / "participants.tsv").write_text(f"participant_id\tage\n{ages}")
    content = prepare("ixi", ixi, tmp_path / "a.json", require="age", validation=2, test=3)
    assert [len(content[s]) for s in SECTIONS] == [4, 2, 3] and content["left_out"] == 1
    assert "unlabelled" not in content and all("age" in x for s in SECTIONS for x in content[s])
    content = prepare("ixi", ixi, tmp_path / "b.json", validation=1, test=1)
    assert [len(content[s]) for s in (*SECTIONS, "unlabelled")] == [1, 1, 1, 7]


def test_nothing_is_overwritten_without_force(ixi, tmp_path):
    output = tmp_path / "ixi.json"
    output.write_text("mine")
    with pytest.raises(DatalistError, match=r"ixi.json exists: .*--force"):
        prepare("ixi", ixi, output)
    with pytest.raises(DatalistError, match=r"--force"):
        write_datalist(output, {"training": []})
    assert output.read_text() == "mine"
    prepare("ixi", ixi, output, force=True)
    assert len(load_datalist(output)["training"]) == 7


def test_a_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        write_datalist(tmp_path / "a.json", {"training": [{"image": tmp_path / "x.nii", "age": object()}]})
    assert list(tmp_path.iterdir()) == []


def test_broken_files_stop_it(ixi, tmp_path):
    (ixi / "t1/IXI003-HH-1000.nii.gz").write_bytes(b"")
    with pytest.raises(DatalistError, match=r"IXI003-HH-1000.nii.gz: is empty"):
        prepare("ixi", ixi, tmp_path / "a.json")
    assert not (tmp_path / "a.json").exists()
    prepare("ixi", ixi, tmp_path / "a.json", check="none")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("brats21", {}, r"Unknown data set 'brats21'; known are abide, acdc, .*brats, .*oasis1"),
        (
            "ixi",
            {"masks": "staple"},
            r"ixi has no option 'masks'; it has no options of its own, .* are validation",
        ),
        ("ixi", {"validaton": 1}, r"ixi has no option 'validaton'; did you mean --validation\?$"),
        ("oasis1", {"images": "orig", "tset": 1}, r"no option 'images', 'tset'; did you mean --image, --test\?$"),
        ("oasis1", {"masks": "x"}, r"oasis1 has no option 'masks'; its options are image, label, and those of all"),
        ("cc359", {}, r"No scan of cc359 is below .*ixi\. The expected layout: .*CC0001_philips"),
        ("cc359", {"masks": "golden"}, r"`masks` is 'golden'; CC359 has machine_learning"),
    ],
)
def test_one_sentence_says_what_is_wrong(ixi, tmp_path, name, options, message):
    with pytest.raises(DatalistError, match=message) as error:
        prepare(name, ixi, tmp_path / "a.json", **options)
    assert "\n" not in str(error.value)


def test_missing_source(tmp_path):
    with pytest.raises(DatalistError, match=r"No folder at .*gone: .*--source"):
        prepare("ixi", tmp_path / "gone", tmp_path / "a.json")


@pytest.mark.parametrize("name", sorted(COLLECTORS))
def test_an_empty_folder_holds_no_scans(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatalistError, match=f"No scan of {name}"):
        prepare(name, tmp_path / "empty", tmp_path / "a.json")


def test_merge_keeps_sets_apart(ixi, tmp_path):
    one, two = tmp_path / "one.json", tmp_path / "deep/two.json"
    prepare("ixi", ixi, one, domain="source")
    touch(tmp_path / "dec", *(f"{d}/IXI{i:03d}.nii.gz" for d in ("imagesTr", "labelsTr") for i in range(10)))
    prepare("decathlon", tmp_path / "dec", two)
    merged = merge([one, two])
    write_datalist(tmp_path / "both/merged.json", merged)
    lists = load_datalist(tmp_path / "both/merged.json", target_domain="two", target_masks=2)
    assert [x["domain"] for x in lists["training"]] == ["source"] * 7 + ["two"] * 2
    assert len(lists["test"]) == 2 and all("dec/imagesTr" in x["image"] for x in lists["test"])


def write_lists(root: Path, contents: dict[str, dict]) -> list[Path]:
    paths = [root / f"{name}.json" for name in contents]
    for path, content in zip(paths, contents.values(), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return paths


def test_two_sets_of_one_layout_are_two_domains(tmp_path):
    """`prepare folders` names every set `folders`, and the same number is another person in another set."""
    lists = {"training": [{"image": "a.nii.gz", "subject": "1"}]}
    contents = {name: lists | {"name": "folders"} for name in ("hospital", "public", "deep/public")}
    one, two, deep = write_lists(tmp_path, contents)
    merged = merge([one, two])
    assert [x["domain"] for x in merged["training"]] == ["hospital", "public"] and merged["name"] == "hospital+public"
    assert merged["training"][0]["image"] == str(tmp_path / "a.nii.gz")
    with pytest.raises(DatalistError) as error:
        merge([two, deep])
    assert str(error.value).startswith(f"{two} and {deep} would both be the domain 'public': rename one")
    stated = lists | {"name": "folders", "training": [{"image": "a.nii.gz", "domain": "x"}]}
    write_lists(tmp_path, {"deep/public": stated})
    assert [x["domain"] for x in merge([two, deep])["training"]] == ["public", "x"]
    others = write_lists(tmp_path, {"x": lists | {"name": "same"}, "y": lists | {"name": "same"}, "z": lists})
    assert [x["domain"] for x in merge(others)["training"]] == ["x", "y", "z"]
    (named,) = write_lists(tmp_path, {"x": lists | {"name": "own"}})
    assert [x["domain"] for x in merge([named, others[1]])["training"]] == ["own", "same"]


def test_masks_numbered_in_several_ways_are_not_merged(tmp_path):
    masks = {"training": [{"image": "a.nii.gz", "label": "b.nii.gz"}]}
    contents = {
        "muse": masks | {"label_scheme": "dlmuse"},
        "free": masks | {"label_scheme": "freesurfer"},
        "unsaid": masks,
        "scans": {"training": [], "unlabelled": ["c.nii.gz"]},
        "ages": {"training": [{"image": "a.nii.gz", "label": 3}]},
    }
    muse, free, unsaid, scans, ages = write_lists(tmp_path, contents)
    with pytest.raises(DatalistError) as error:
        merge([muse, free])
    said = f"The masks are numbered in several ways (in {muse} as 'dlmuse', in {free} as 'freesurfer'): merge those of"
    assert str(error.value).startswith(said)
    with pytest.raises(DatalistError, match=rf"in {muse} as 'dlmuse', in {unsaid} it is not stated"):
        merge([muse, unsaid])
    assert merge([muse, scans, ages])["label_scheme"] == "dlmuse"  # without masks there is nothing to number
    assert "label_scheme" not in merge([unsaid, scans])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"training": [], "validation": None}, "'validation' is no list"),
        ({"training": [], "unlabelled": None}, "'unlabelled' is no list"),
        ({"training": [], "test": 5}, "'test' is no list"),
        ({"training": [{"image": None}]}, r"training\[0\]:? has no 'image'"),
        ({"training": [{"label": "b.nii.gz"}]}, r"training\[0\]:? has no 'image'"),
        ({"training": [{"image": 5}]}, r"training\[0\]:? 'image' is 5, which is not a path"),
        ({"training": [{"image": "a.nii.gz", "subject": ["a"]}]}, r"training\[0\]:? 'subject' is \['a'\], which is"),
        (
            {"training": [{"image": "a.nii.gz", "diagnosis": ["a"]}]},
            r"training\[0\]:? 'diagnosis' is \['a'\], which is",
        ),
        ({"training": [{"image": "a.nii.gz"}], "label_scheme": ["a"]}, r"`label_scheme` is \['a'\], which is no name"),
    ],
)
def test_what_is_no_datalist_is_said_with_the_file(tmp_path, content, message):
    from common.data.__main__ import check
    from common.data.__main__ import merge as command

    touch(tmp_path, "a.nii.gz", "b.nii.gz")
    path, other = write_lists(tmp_path, {"x": content, "y": {"training": ["b.nii.gz"]}})
    with pytest.raises(DatalistError, match=rf"{path}: {message}"):
        command(str(path), str(other), output=str(tmp_path / "z.json"))
    with pytest.raises(DatalistError, match=rf"{path}: {message}"):
        check(str(path))
    assert not (tmp_path / "z.json").exists()


def test_diagnoses_of_several_kinds_are_counted():
    items = [{"image": "a", "diagnosis": x} for x in (1, "AD", 1)]
    assert "diagnosis 1: 2, diagnosis AD: 1" in describe({"training": items})


# --- the command line ---------------------------------------------------------------------------------------------


def test_command_line(ixi, tmp_path, monkeypatch, capsys):
    from common.data.__main__ import main

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["common.data", *map(str, arguments)])
        main()
        return capsys.readouterr().out

    a, b, c = (tmp_path / f"{n}.json" for n in "abc")
    out = run("prepare", "ixi", "--source", ixi, "--output", a, "--test", 3, "--require", "label,subject")
    assert "test       3 scans of 3 subjects, 3 labels" in out and str(a) in out
    with pytest.raises(SystemExit, match=r"^error: .*a.json exists"):
        run("prepare", "ixi", "--source", ixi, "--output", a)
    with pytest.raises(SystemExit, match=r"^error: Give the folder"):
        run("prepare", "ixi", "--output", a)

    touch(tmp_path / "cc", "Original/CC0001_philips_15_55_M.nii.gz", "Original/CC0002_philips_15_56_F.nii.gz")
    run("prepare", "cc359", "--source", tmp_path / "cc", "--output", b, "--test=0", "--validation=0")
    assert "training   8 scans" in run("merge", a, b, "--output", c)
    with pytest.raises(SystemExit, match=r"^error: .*leave none"):
        run("prepare", "cc359", "--source", tmp_path / "cc", "--output", b, "--test=2", "--force")


def test_the_options_of_a_set_are_what_was_typed(tmp_path, monkeypatch):
    from common.data.__main__ import main

    def run(*arguments: object) -> dict:
        words = ["prepare", *map(str, arguments), "--output", str(tmp_path / "a.json"), "--validation", "0", "--force"]
        monkeypatch.setattr(sys, "argv", ["common.data", *words])
        main()
        return json.loads((tmp_path / "a.json").read_text())

    def count(content: dict) -> int:
        return sum(len(content.get(name, [])) for name in (*SECTIONS, "unlabelled"))

    abide(tmp_path / "abide")
    options = ["abide", "--source", tmp_path / "abide", "--check", "none"]
    assert [count(run(*options, "--controls", word)) for word in ("true", "True", "false", "False")] == [4, 4, 5, 5]
    assert [count(run(*options, "--one_scan", word)) for word in ("true", "false")] == [3, 4]
    names = ("2019.10/a.nii.gz", "2019.10/b.nii.gz", "2020/a1.nii.gz", "2020/b1.nii.gz")
    touch(tmp_path / "sets", *names)
    options = ["--source", tmp_path / "sets", "--images", "2019.10", "--labels", "2020", "--label_ending", 1]
    made = run("folders", *options, "--domain", "1.0", "--test", "1")
    assert made["test"][0]["domain"] == "1.0"
    files = {x[key] for x in made["training"] + made["test"] for key in ("image", "label")}
    assert files == {f"sets/{name}" for name in names}
    assert count(run("folders", *options[:4], "--labels", "None", "--require", "image,subject")) == 2
    touch(tmp_path / "acdc", *(f"p/patient00{n}_frame01{end}.nii.gz" for n in range(3) for end in ("", "_gt")))
    touch(tmp_path / "acdc", "testing/p/patient101_frame01.nii.gz")
    options = ["acdc", "--source", tmp_path / "acdc", "--test", "1"]
    assert [count(run(*options, "--transductive", word)) for word in ("True", "false")] == [4, 3]


def test_an_open_label_scheme_is_said(ixi, tmp_path, capsys):
    from common.data.__main__ import prepare as command

    command("ixi", str(ixi), str(tmp_path / "a.json"))
    out = capsys.readouterr().out
    assert "does not state how the masks are numbered" in out and "--label_scheme NAME" in out and "dlmuse" in out
    command("ixi", str(ixi), str(tmp_path / "b.json"), label_scheme="dlmuse")
    assert "numbered" not in capsys.readouterr().out
    for mask in (ixi / "labels").iterdir():
        mask.unlink()
    command("ixi", str(ixi), str(tmp_path / "c.json"))
    assert "numbered" not in capsys.readouterr().out


def test_the_command_ends_with_a_sentence(ixi, tmp_path, monkeypatch):
    """Python prints the words of a `SystemExit` and ends with status 1."""
    prepare("ixi", ixi, tmp_path / "a.json")
    (ixi / "t1/IXI003-HH-1000.nii.gz").write_bytes(b"")
    monkeypatch.setattr(sys, "argv", ["common.data", "check", str(tmp_path / "a.json"), "--num_classes", "2"])
    with pytest.raises(SystemExit, match=r"^error: (?s:.)*IXI003-HH-1000\.nii\.gz: is empty"):
        runpy.run_module("common.data", run_name="__main__")


def test_the_sample_goes_to_its_maker(monkeypatch, capsys):
    import common.data.sample as sample
    from common.data.__main__ import prepare as command

    monkeypatch.setattr(sample, "make_sample", lambda output, **options: f"{output} {options}")
    command("sample", output="here", subjects=3)
    assert "The sample is in here {'subjects': 3}" in capsys.readouterr().out


def test_check_says_that_nothing_is_wrong(ixi, tmp_path, capsys):
    from common.data.__main__ import check

    prepare("ixi", ixi, tmp_path / "a.json")
    check(str(tmp_path / "a.json"), num_classes=2)
    assert "nothing is wrong" in capsys.readouterr().out
    with pytest.raises(DatalistError, match=r"labels outside 0 to 0"):
        check(str(tmp_path / "a.json"), num_classes=1)


@pytest.fixture
def muse(tmp_path):
    """A study whose masks have DLMUSE's numbers; 4 and 11 are ventricles, 23 an accumbens."""
    touch(tmp_path, *(f"t1/{i}.nii.gz" for i in range(3)))
    for i in range(3):
        labels = np.zeros((3, 4, 5), np.uint8)
        labels[0, 0, :3] = 4, 11, 23
        (tmp_path / "labels").mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(labels, np.eye(4)), tmp_path / f"labels/{i}.nii.gz")
    items = [{"image": f"t1/{i}.nii.gz", "label": f"labels/{i}.nii.gz"} for i in range(3)]
    content = {"training": items[:1], "validation": items[1:2], "test": items[2:]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    return tmp_path / "a.json"


def spoil(path: Path, value: int) -> None:
    file = path.parent / "labels/1.nii.gz"
    labels = np.asarray(nib.load(file).dataobj).copy()
    labels[1] = value
    nib.save(nib.Nifti1Image(labels, np.eye(4)), file)


def state_label_scheme(path: Path, label_scheme: str) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"label_scheme": label_scheme}))


@pytest.mark.parametrize("stated", [False, True])
def test_check_knows_the_label_scheme(muse, capsys, stated):
    from common.data.__main__ import check

    options = {} if stated else {"label_scheme": "dlmuse"}
    if stated:
        state_label_scheme(muse, "dlmuse")
    for more in ({}, {"task": "structures4"}, {"task": "structures4", "num_classes": 5}):
        check(str(muse), **options, **more)
        out = capsys.readouterr().out
        assert "nothing is wrong" in out and "numbered" not in out
    spoil(muse, 3)  # no region of MUSE
    for more in ({}, {"task": "structures4"}):
        with pytest.raises(DatalistError, match=r"labels/1.nii.gz: has labels that no class names \(3\)"):
            check(str(muse), **options, **more)


def test_check_says_what_it_could_not_check(muse, capsys):
    from common.data.__main__ import check

    spoil(muse, 77)
    check(str(muse))
    out = capsys.readouterr().out
    assert "does not say how its masks are numbered" in out and "are not checked" in out and "dlmuse" in out
    with pytest.raises(DatalistError, match=r"labels outside 0 to 4 \(11, 23\)"):
        check(str(muse), num_classes=5)
    assert "taken for classes from 0 to 4: give --label_scheme NAME --task NAME" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "structures4"}, r"does not say how its masks are numbered: give --label_scheme NAME with --task"),
        ({"label_scheme": "dlmuse", "num_classes": 5}, r"give --task NAME in place of --num_classes 5"),
        ({"label_scheme": "dlmuse", "task": "structures33", "num_classes": 5}, r"'structures33' has 34 classes"),
        ({"label_scheme": "dlmuse", "task": "organs8"}, r"numbered as 'dlmuse' hold no class of the task 'organs8'"),
        ({"label_scheme": "muse"}, r"Unknown label scheme 'muse'; known are"),
        ({"label_scheme": "task", "task": "structures4"}, r"labels that no class names \(11, 23\)"),
    ],
)
def test_check_needs_options_that_fit(muse, options, message):
    from common.data.__main__ import check

    with pytest.raises(ValueError, match=message):
        check(str(muse), **options)


def test_check_refuses_another_label_scheme_than_stated(muse):
    from common.data.__main__ import check

    state_label_scheme(muse, "dlmuse")
    with pytest.raises(DatalistError, match=r"numbered as 'dlmuse', but the config id `label_scheme` is 'freesurfer'"):
        check(str(muse), label_scheme="freesurfer")


def test_check_finds_a_constant_image(muse):
    from common.data.__main__ import check

    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5), np.float32), np.eye(4)), muse.parent / "t1/2.nii.gz")
    with pytest.raises(DatalistError, match=r"t1/2.nii.gz: is constant \(every voxel is 0\)"):
        check(str(muse), label_scheme="dlmuse")


def test_check_names_lists_that_are_missing(muse, capsys):
    from common.data.__main__ import check

    check(str(muse))
    assert "no validation list" not in capsys.readouterr().out
    content = json.loads(muse.read_text())
    muse.write_text(json.dumps({"training": content["training"], "test": []}))
    check(str(muse))
    out = capsys.readouterr().out
    assert "no validation list: training needs one (--fold 0" in out and "no test list" in out


@pytest.mark.parametrize("section", ["training", "unlabelled"])
def test_check_reads_scans_without_any_label(tmp_path, capsys, section):
    from common.data.__main__ import check

    touch(tmp_path, "t1.nii.gz")
    (tmp_path / "a.json").write_text(json.dumps({section: [{"image": "t1.nii.gz"}]}))
    check(str(tmp_path / "a.json"))
    assert "nothing is wrong" in capsys.readouterr().out
    (tmp_path / "t1.nii.gz").write_bytes(b"")
    with pytest.raises(DatalistError, match=r"t1.nii.gz: is empty"):
        check(str(tmp_path / "a.json"))


@pytest.mark.parametrize(
    "options", [{"task": "acdc"}, {"label_scheme": "dlmuse"}, {"num_classes": 4}, {"label_key": "mask"}]
)
def test_check_cannot_say_anything_about_labels_that_are_not_there(tmp_path, options):
    from common.data.__main__ import check

    touch(tmp_path, "t1.nii.gz")
    (tmp_path / "a.json").write_text(json.dumps({"training": [{"image": "t1.nii.gz"}]}))
    ((name, value),) = options.items()
    with pytest.raises(DatalistError, match=rf"No item of training, .* so --{name} {value} cannot be checked"):
        check(str(tmp_path / "a.json"), **options)


def test_spacing_takes_the_folder_of_the_paths(tmp_path, capsys):
    from common.data.domains import print_spacing

    touch(tmp_path / "scans", "t1.nii.gz")
    (tmp_path / "a.json").write_text(json.dumps({"training": [{"image": "t1.nii.gz"}]}))
    print_spacing(str(tmp_path / "a.json"), base_dir=str(tmp_path / "scans"))
    assert capsys.readouterr().out == "1 x 1 x 1 mm (RAS)\n"
    with pytest.raises(DatalistError, match=r"t1.nii.gz: does not exist"):
        print_spacing(str(tmp_path / "a.json"))
    for wrong in ("XYZ", "RRS", "RA"):
        with pytest.raises(ValueError, match=rf"`orientation` is '{wrong}'; it must name three axes"):
            print_spacing(str(tmp_path / "a.json"), base_dir=str(tmp_path / "scans"), orientation=wrong)


def test_one_scan_a_subject_is_that_of_the_youngest_age(tmp_path):
    visits = [("005_S_2390", 7, 75.1), ("005_S_2390", 8, 74.0), ("006_S_0001", 9, 60.0), ("007_S_0001", 10, 61.0)]
    touch(tmp_path, *(f"ADNI_{subject}_MR_x_I{number}.nii" for subject, number, _ in visits))
    rows = ["Image Data ID,Group,Age", *(f"I{number},CN,{age}" for _, number, age in visits)]
    (tmp_path / "search.csv").write_text("\n".join(rows))
    options = {"require": "diagnosis", "validation": 0, "test": 1}
    made = prepare("adni", tmp_path, tmp_path / "a.json", one_scan=True, **options)
    assert sorted(x["age"] for name in SECTIONS for x in made[name]) == [60.0, 61.0, 74.0] and made["left_out"] == 0
    assert made["repeated_scans_left_out"] == 1 and "1 further scans of the same subjects" in describe(made)
    whole = prepare("adni", tmp_path, tmp_path / "b.json", **options)
    assert sum(len(whole[name]) for name in SECTIONS) == 4
