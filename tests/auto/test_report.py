"""The report of an automatic run, from the files of one made up here."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from common.auto.plan import Decision, Plan
from common.auto.report import _pairs, _validation_dice, write_report
from common.auto.study import Study
from common.json_files import write_json


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three test scans of two structures; in the worst one, half of the second is missed."""
    mask = np.zeros((8, 8, 6), np.uint8)
    mask[1:4, 1:4, 1:4], mask[4:7, 4:7, 2:4] = 1, 2
    (tmp_path / "test_predictions").mkdir()
    rows = ["case,class,dice,hd95"]
    for number, second in enumerate((0.5, 0.8, 0.9)):
        found = mask.copy()
        found[4:7, 4:7, 2] *= number > 0
        for name, values in ((f"{number}.nii.gz", mask), (f"test_predictions/{number}_seg.nii.gz", found)):
            nib.save(nib.Nifti1Image(values, np.diag([10.0, 10, 10, 1])), tmp_path / name)
        rows += [f"{number},heart,0.9,1.0", f"{number},<b>wall</b>,{second},2.0"]
    scores = tmp_path / "training" / "eval" / "scores.csv"
    scores.parent.mkdir(parents=True)
    scores.write_text("\n".join(rows) + "\n")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "training.log").write_text("")
    write_json(tmp_path / "plan.json", {"label_map": {"0": [0], "1": [1], "2": [2]}})
    return tmp_path


def write(folder: Path, ending: str, **seconds: float) -> tuple[str, dict[str, float]]:
    names = [f"{number}{ending}" for number in range(3)]
    write_json(
        folder / "datalist.json",
        {"training": [{}], "validation": [{}, {}], "test": [{"image": name, "label": name} for name in names]},
    )
    plan = Plan("ssl3d", {}, (Decision("crop", "8 x 8 x 8", "it fits"),))
    path, dice = write_report(
        Study("two folders", ()), plan, folder, {"trial_scratch": 31.0, "training": 120.0} | seconds
    )
    return path.read_text(), dice


def test_scores_volumes_and_pictures(folder, monkeypatch):
    monkeypatch.setattr(Study, "describe", lambda self: ["three scans"])
    text, dice = write(folder, ".nii.gz")
    assert dice == pytest.approx({"heart": 0.9, "<b>wall</b>": (0.5 + 0.8 + 0.9) / 3})
    assert text.count("data:image/png") == 2  # cases, volumes
    assert "<td>27</td><td>27</td>" in text and "<td>18</td><td>15</td>" in text  # ml: 9 of 18 missed once
    assert "&lt;b&gt;wall" in text and "<b>wall" not in text
    assert "<td>trial scratch</td><td>31 s</td>" in text and "<td>all</td><td>2.5 min</td>" in text
    assert "Mean Dice 0.817" in text.replace("<b>", "") and "it fits" in text and "three scans" in text
    assert "(the lowest 0.700, the highest 0.900)" in text and "3 test scans are few" in text
    assert "Split: 1 scan to train on, 2 to choose the checkpoint by, 3 to test on." in text


def test_masks_with_a_fourth_axis_of_length_1_are_drawn(folder, monkeypatch):
    monkeypatch.setattr(Study, "describe", lambda self: ["three scans"])
    before, _ = write(folder, ".nii.gz")
    for path in folder.glob("*.nii.gz"):  # scan and mask in one, here
        image = nib.load(path)
        values = np.asarray(image.dataobj)[..., None]
        nib.save(nib.Nifti1Image(values, image.affine), path)
    after, _ = write(folder, ".nii.gz")
    assert after.count("data:image/png") == before.count("data:image/png") == 2
    assert "<td>27</td><td>27</td>" in after and "<td>18</td><td>15</td>" in after


def test_scans_of_one_name_in_folders_of_their_own(folder, monkeypatch):
    """Label maps have the scans' paths, and the scores their names."""
    monkeypatch.setattr(Study, "describe", lambda self: ["three scans"])
    scores = folder / "training/eval/scores.csv"
    text = scores.read_text()
    for number in range(3):
        for place, name in ((".", f"{number}"), ("test_predictions", f"{number}_seg")):
            new = folder / place / f"case{number}" / name.replace(str(number), "scan")
            new.parent.mkdir(exist_ok=True)
            (folder / place / f"{name}.nii.gz").rename(f"{new}.nii.gz")
        text = text.replace(f"\n{number},", f"\ncase{number}/scan,")
    scores.write_text(text)
    names = [f"case{number}/scan.nii.gz" for number in range(3)]
    lists = {"training": [{}], "validation": [{}], "test": [{"image": name, "label": name} for name in names]}
    write_json(folder / "datalist.json", lists)
    assert [name for name, *_ in _pairs(folder)] == [f"case{number}/scan" for number in range(3)]
    plan = Plan("ssl3d", {}, (Decision("crop", "8 x 8 x 8", "it fits"),))
    page = write_report(Study("two folders", ()), plan, folder, {"training": 120.0})[0].read_text()
    assert page.count("data:image/png") == 2 and "<td>18</td><td>15</td>" in page


def test_the_curve_is_of_the_last_plan_and_its_resumptions(folder):
    parts = [
        "$ python -m a\nEpoch[1] Metrics -- val_mean_dice: 0.85 ",
        "$ python -m b\nEpoch[1] Metrics -- val_mean_dice: 0.1 ",
    ]
    parts += ["$ python -m b --resume True\nEpoch[2] Metrics -- val_mean_dice: 0.3 "]
    (folder / "logs/training.log").write_text("\n".join(["", *parts]))
    assert _validation_dice(folder) == [0.1, 0.3]


def test_a_notebook_goes_on_to_show_its_own_figures(folder, monkeypatch):
    """After the report with another backend, it showed none."""
    import matplotlib

    monkeypatch.setattr(Study, "describe", lambda self: ["three scans"])
    before = matplotlib.get_backend()
    matplotlib.use("svg")
    try:
        write(folder, ".nii.gz")
        assert matplotlib.get_backend() == "svg"
    finally:
        matplotlib.use(before)


def test_scans_of_other_formats_are_scored_without_pictures(folder, monkeypatch):
    """A run of hours does not end in an error because the report reads NIfTI alone."""
    monkeypatch.setattr(Study, "describe", lambda self: ["three scans"])
    text, dice = write(folder, ".nrrd")
    assert dice["heart"] == pytest.approx(0.9)
    assert "data:image/png" not in text


def test_the_report_has_the_curve_the_control_and_what_to_try_next(folder, monkeypatch):
    monkeypatch.setattr(Study, "describe", lambda self: ["three scans"])
    log = [f"fine-tuning epoch {number}/4: loss {2 / number}, 1.0 s" for number in (1, 2, 3, 4)]
    log += [f"Epoch[{number}] Metrics -- val_mean_dice: {dice} " for number, dice in ((2, 0.6), (4, 0.7))]
    (folder / "logs" / "training.log").write_text("\n".join(log))
    control = folder / "control" / "eval" / "scores.csv"
    control.parent.mkdir(parents=True)
    scores = (folder / "training" / "eval" / "scores.csv").read_text()
    control.write_text(scores.replace("wall</b>,0.9", "wall</b>,0.7"))
    assert "From scratch" not in write(folder, ".nii.gz")[0]  # a table of an earlier plan
    text, _ = write(folder, ".nii.gz", evaluate_control=9.0)
    assert text.count("data:image/png") == 3  # cases, volumes, training
    assert "From scratch, with as many steps: 0.783; the encoder was better in 1 of 3 scans, by +0.033" in text
    assert "Validation still rose at the end (0.600 to 0.700): more --hours should help." in text
    assert "Look at 0, far below the others" in text
    (folder / "logs" / "training.log").write_text("\n".join(log).replace("0.7 ", "0.6 "))
    text, _ = write(folder, ".nii.gz")
    assert "Validation was flat at the end" in text and "still rose" not in text
    dip = [f"Epoch[{number}] Metrics -- val_mean_dice: {dice} " for number, dice in ((1, 0.81), (2, 0.7), (4, 0.8))]
    (folder / "logs" / "training.log").write_text("\n".join([*log[:4], *dip]))
    text, _ = write(folder, ".nii.gz")
    assert "Validation was flat at the end" in text, "it had been as good before"
