"""`python -m common.score` against plain numpy and scipy, and what it refuses."""

from __future__ import annotations

import csv
import gzip
import math
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from common.metrics import HD95
from common.score import ScoreError, main, match, score, score_masks

ROOT = Path(__file__).resolve().parents[1]
SHAPE, SPACING = (20, 18, 9), (0.8, 1.1, 5.0)
AFFINE = np.diag([*SPACING, 1.0])


def write(path, labels, affine=AFFINE, dtype=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.asarray(labels, dtype), affine), path)


def labels(seed):
    """Two ellipsoids that move with the seed."""
    shift = np.random.default_rng(seed).uniform(-1, 1, (2, 3))
    grid = np.moveaxis(np.indices(SHAPE), 0, -1)
    found = np.zeros(SHAPE, np.uint8)
    for label, centre in enumerate(([6, 8, 4], [14, 9, 5]), 1):
        found[(((grid - centre - shift[label - 1]) / (4, 5, 2.5)) ** 2).sum(-1) < 1] = label
    return found


def expected(truth, prediction, tolerance, pooled=False):
    """Dice, NSD and HD95 by scipy's distance transform."""
    edges = [mask & ~ndimage.binary_erosion(mask) for mask in (truth, prediction)]
    fields = [ndimage.distance_transform_edt(~edge, sampling=SPACING) for edge in edges]
    there, back = fields[1][edges[0]], fields[0][edges[1]]
    both = np.hstack((there, back))
    distance = np.percentile(both, 95) if pooled else max(np.percentile(there, 95), np.percentile(back, 95))
    return 2 * (truth & prediction).sum() / (truth.sum() + prediction.sum()), (both <= tolerance).mean(), distance


@pytest.fixture
def folders(tmp_path):
    """Three cases; the predictions are named as inference names them, in a folder of the images' folder."""
    for case in range(3):
        write(tmp_path / "truth" / f"scan{case}.nii.gz", labels(case))
        write(tmp_path / "predicted" / "imagesTs" / f"scan{case}_seg.nii.gz", labels(case + 10))
    return tmp_path / "truth", tmp_path / "predicted"


def run(folders, **options):
    output = folders[0].parent / "out" / "scores.csv"
    score(*map(str, folders), output=str(output), **options)
    with open(output, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("hd95", ["larger", "pooled"])
def test_scores_of_folders(folders, capsys, hd95):
    rows = run(folders, names="left,right", tolerance=2, hd95=hd95)
    assert [(row["case"], row["class"]) for row in rows] == [
        (f"scan{case}", name) for case in range(3) for name in ("left", "right")
    ]
    wanted = [
        expected(labels(case) == label, labels(case + 10) == label, 2, hd95 == "pooled")
        for case in range(3)
        for label in (1, 2)
    ]
    found = [[float(row[key]) for key in ("dice", "nsd", "hd95")] for row in rows]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert 0.3 < np.min(found, 0)[0] < 1 and np.max(found, 0)[2] > 1
    printed = capsys.readouterr().out.splitlines()
    means = np.array(wanted).reshape(3, 2, 3).mean(0)
    for line, mean in zip(printed[1:4], [*means, means.mean(0)], strict=True):
        assert line.split()[1:4] == [f"{mean[0]:.4f}", f"{mean[1]:.4f}", f"{mean[2]:.2f}"]
    assert printed[0].startswith("class") and "NSD at 2 mm" in printed[0] and hd95 in printed[0]


def test_the_spacing_is_that_of_a_turned_grid(folders):
    turn = np.array([[0, 0, 5.0, 3], [-0.8, 0, 0, 4], [0, 1.1, 0, 5], [0, 0, 0, 1]])
    before = run(folders)
    for folder in folders:
        for path in folder.rglob("*.nii.gz"):
            write(path, np.asarray(nib.load(path).dataobj), turn)
    after = run(folders)
    for a, b in zip(before, after, strict=True):
        assert float(a["hd95"]) == pytest.approx(float(b["hd95"]), rel=1e-6)


@pytest.mark.parametrize("hd95", ["larger", "pooled"])
def test_the_bundles_hd95_is_the_same_also_for_empty_masks(hd95):
    truth, prediction = np.stack([labels(0) == x for x in range(5)]), np.stack([labels(3) == x for x in range(5)])
    truth[3, 2:5, 3, 4] = True  # missed
    prediction[4, 1] = True  # invented
    truth[2] = prediction[2] = False
    theirs = HD95(SPACING, definition=hd95)(*(torch.from_numpy(x)[None].float() for x in (prediction, truth)))
    ours = [score_masks(truth[c], prediction[c], SPACING, hd95=hd95) for c in range(1, 5)]
    assert [x["hd95"] for x in ours] == pytest.approx(theirs[0].tolist(), rel=1e-5, nan_ok=True)
    assert [ours[2]["dice"], ours[2]["nsd"], ours[3]["dice"], ours[3]["nsd"]] == [0] * 4
    assert ours[3]["hd95"] == pytest.approx(math.dist([0] * 3, np.multiply(SHAPE, SPACING)))
    assert all(math.isnan(value) for value in ours[1].values())


def test_what_is_in_neither_is_left_out(folders, capsys):
    for folder, name in zip(folders, ("scan0.nii.gz", "imagesTs/scan0_seg.nii.gz"), strict=True):
        write(folder / name, labels(0) == 1)
    rows = run(folders)
    assert (rows[1]["dice"], rows[1]["nsd"], rows[1]["hd95"]) == ("", "", "")
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert table[1][-1] == "3" and table[2][-1] == "2"
    assert float(table[2][1]) == pytest.approx(np.mean([float(rows[i]["dice"]) for i in (3, 5)]), abs=1e-4)
    # the mean over cases of a case's classes, as the evaluation has it
    dice = [float(rows[0]["dice"]), *(np.mean([float(row["dice"]) for row in rows[i : i + 2]]) for i in (2, 4))]
    assert float(table[3][1]) == pytest.approx(np.mean(dice), abs=1e-4) and table[3][-1] == "3"
    row = run(folders, empty="perfect")[1]
    assert [float(row[key]) for key in ("dice", "nsd", "hd95")] == [1, 1, 0]


def test_a_tolerance_of_whole_voxels_counts():
    truth, prediction = (np.zeros((9, 9, 9), bool) for _ in range(2))
    truth[2, 2:5, 2:5] = prediction[5, 2:5, 2:5] = True
    assert score_masks(truth, prediction, (0.4, 0.4, 0.4), tolerance=1.2)["nsd"] == 1
    assert score_masks(truth, prediction, (0.4, 0.4, 0.4), tolerance=1.1)["nsd"] == 0


def test_names_that_occur_twice_match_by_path(tmp_path):
    for subject in ("a", "b"):
        write(tmp_path / "truth" / subject / "T1w.nii.gz", labels(0))
        write(tmp_path / "predicted" / subject / "T1w_seg.nii.gz", labels(0))
    assert list(match(tmp_path / "truth", tmp_path / "predicted")) == ["a/T1w", "b/T1w"]


def test_names_may_be_in_capitals(tmp_path):
    for folder, name in (("truth", "scan.NII.GZ"), ("predicted", "scan_seg.nii.gz")):
        write(tmp_path / folder / "scan.nii.gz", labels(0))
        (tmp_path / folder / "scan.nii.gz").rename(tmp_path / folder / name)
    assert [row["dice"] for row in run((tmp_path / "truth", tmp_path / "predicted"))] == ["1.0", "1.0"]


def test_a_truth_may_end_in_the_postfix(tmp_path):
    for folder in ("truth", "predicted"):
        write(tmp_path / folder / "BraTS_1_seg.nii.gz", labels(0))
    assert list(match(tmp_path / "truth", tmp_path / "predicted")) == ["BraTS_1_seg"]


def test_files_without_a_partner_are_refused(folders):
    write(folders[0] / "more.nii.gz", labels(0))
    write(folders[1] / "other.nii", labels(0))
    with pytest.raises(
        ScoreError, match=r"no partner, without a prediction in \S+: \S+/more.nii.gz; without a truth"
    ) as e:
        run(folders)
    assert "predicted/other.nii;" in str(e.value)
    assert not (folders[0].parent / "out").exists()


def test_two_predictions_of_a_case_are_refused(folders):
    write(folders[1] / "scan1.nii.gz", labels(0))
    with pytest.raises(ScoreError, match=r"to one case: \S+scan1_seg.nii.gz, \S+scan1.nii.gz"):
        run(folders)


def test_two_files_of_one_name_are_refused(folders):
    write(folders[0] / "scan1.nii", labels(0))
    with pytest.raises(ScoreError, match=r"truth have one name: \S+scan1.nii, \S+scan1.nii.gz"):
        run(folders)


def test_another_grid_is_refused(folders):
    write(folders[1] / "imagesTs" / "scan0_seg.nii.gz", labels(0)[:, :, :-1])
    write(folders[1] / "imagesTs" / "scan2_seg.nii.gz", labels(0), AFFINE @ np.diag([1, 1, 0.5, 1]))
    with pytest.raises(ScoreError, match=r"20x18x8.*20x18x9.*; different affines: .*scan2_seg.*scan2.nii.gz"):
        run(folders)


def test_four_axes_are_refused(folders):
    for path in (folders[0] / "scan0.nii.gz", folders[1] / "imagesTs" / "scan0_seg.nii.gz"):
        write(path, labels(0)[..., None].repeat(2, -1))
    with pytest.raises(ScoreError, match=r"scan0.nii.gz has 4 axes"):
        run(folders)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": "left"}, "--names has 1 classes, and the values 2 are in .*scan0"),
        ({"names": "left,left"}, "different names"),
        ({"names": True}, "different names"),
        ({"tolerance": -1}, "--tolerance"),
        ({"hd95": "mean"}, "larger or pooled"),
        ({"empty": "zero"}, "leave_out or perfect"),
    ],
)
def test_wrong_options_are_refused(folders, options, message):
    with pytest.raises(ScoreError, match=message):
        run(folders, **options)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.full(SHAPE, 0.5), "not whole numbers"),
        (np.full(SHAPE, np.nan), "not finite"),
        (-np.ones(SHAPE), "outside 0"),
    ],
)
def test_files_that_are_no_label_maps_are_refused(folders, content, message):
    write(folders[1] / "imagesTs" / "scan1_seg.nii.gz", content, dtype=np.float32)
    with pytest.raises(ScoreError, match=f"scan1_seg.nii.gz .*{message}"):
        run(folders)


@pytest.mark.parametrize("share", [0, 0.3, 0.9])
def test_a_cut_file_is_refused(folders, share):
    path = folders[1] / "imagesTs" / "scan1_seg.nii.gz"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ScoreError, match=r"scan1_seg.nii.gz cannot be read"):
        run(folders)


def test_a_damaged_file_is_refused_as_in_training(folders):
    path = folders[1] / "imagesTs" / "scan1_seg.nii.gz"
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # of the checksum, which nibabel does not reach
    path.write_bytes(content)
    with pytest.raises(ScoreError, match=r"scan1_seg.nii.gz is damaged \(checksum"):
        run(folders)


@pytest.mark.parametrize(
    ("place", "code"),
    [(70, 9999), (40, 9)],  # of the header's type of voxels, and of its number of axes
)
def test_a_damaged_header_is_refused(folders, place, code):
    path = folders[1] / "imagesTs" / "scan1_seg.nii.gz"
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[place : place + 2] = code.to_bytes(2, "little")
    path.write_bytes(gzip.compress(content))
    with pytest.raises(ScoreError, match=r"scan1_seg\.nii\.gz cannot be read as NIfTI \(.*\): write it again\."):
        run(folders)


def test_no_folder_no_files_no_class(tmp_path, folders):
    with pytest.raises(ScoreError, match="nowhere is not a folder"):
        run((folders[0], tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ScoreError, match="empty has no NIfTI"):
        run((folders[0], tmp_path / "empty"))
    for folder in folders:
        for path in folder.rglob("*.nii.gz"):
            write(path, np.zeros(SHAPE))
    with pytest.raises(ScoreError, match="background"):
        run(folders)


def test_the_command_line(folders):
    command = [sys.executable, "-m", "common.score", "--truth", str(folders[0]), "--prediction", str(folders[1])]
    output = folders[0].parent / "scores.csv"
    done = subprocess.run(
        [*command, "--output", str(output), "--names", "left,right"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0 and "right" in done.stdout and output.is_file(), done.stderr


def test_a_mistake_on_the_command_line_is_one_sentence(folders, monkeypatch):
    arguments = ["score", "--truth", str(folders[0]), "--prediction", str(folders[1]), "--names", "left"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit, match=r"^error: --names has 1 classes"):
        main()
