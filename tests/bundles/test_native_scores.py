"""What an evaluation says are the scores of the label maps that inference writes, on the grids of the scans' files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from common.data import label_names
from common.score import score

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
NAMES = [name for number, name in label_names("structures4").items() if number]
# Anisotropic and turned out of the axes; stored as left, inferior, anterior; many small slices.
TURNED = np.array([[0.98, -0.199, 0.0], [0.199, 0.98, 0.0], [0.0, 0.0, 1.0]])
SCANS = {
    "turned": ((30, 38, 20), TURNED @ np.diag([4.5, 3.5, 7.0])),
    "axes": ((36, 24, 33), np.array([[-4.0, 0, 0], [0, 0, 4.3], [0, -5.5, 0]])),
}


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Folder of scans in an empty margin, which preprocessing cuts off; a structure is labelled there too."""
    folder, random = tmp_path_factory.mktemp("scans"), np.random.default_rng(0)
    items: dict[str, list] = {}
    others = {part: ((30, 38, 20), np.eye(3) * 4) for part in ("training", "validation")}
    for name, (shape, axes) in {**SCANS, **others}.items():
        part = name if name in others else "test"
        affine = nib.affines.from_matvec(axes, [30.0, -20.0, 10.0])
        image, label = np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
        inside = tuple(slice(4, n - 3) for n in shape)
        smooth = ndimage.gaussian_filter(random.normal(size=shape), 2)[inside]
        image[inside] = 300 + 2000 * smooth
        label[inside] = np.digitize(smooth, np.quantile(smooth, [0.5, 0.7, 0.85]))
        label[:2, 5:9, 5:9] = 2
        item = {"image": f"{part}/images/{name}.nii.gz", "label": f"{part}/labels/{name}.nii.gz"}
        for key, data in (("image", image), ("label", label)):
            (folder / item[key]).parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(data, affine), folder / item[key])
        items.setdefault(part, []).append(item)
    (folder / "list.json").write_text(json.dumps(items))
    return folder


def independent(truth, prediction, spacing):
    """Dice, and the larger 95th percentile of the distances from surface to surface; with the rule for empty masks."""
    if not truth.any() and not prediction.any():
        return np.nan, np.nan
    if not truth.any() or not prediction.any():
        return 0, np.linalg.norm(np.multiply(truth.shape, spacing))
    edges = [mask & ~ndimage.binary_erosion(mask) for mask in (truth, prediction)]
    fields = [ndimage.distance_transform_edt(~edge, sampling=spacing) for edge in edges]
    distance = max(np.percentile(fields[1][edges[0]], 95), np.percentile(fields[0][edges[1]], 95))
    return 2 * (truth & prediction).sum() / (truth.sum() + prediction.sum()), distance


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file, skipinitialspace=True))


@pytest.fixture
def evaluated(run_bundle, small_files, small_model, scans, tmp_path):
    """``evaluated(bundle)``: the folder of an evaluation of the two scans, and what was written for them."""

    def run(bundle, **options):
        data = {"bundle": bundle, "dataset_dir": str(scans), "device": "cpu"}
        data |= {"model_path": str(small_model(bundle)), "datalist": str(scans / "list.json")}
        given = {"output_dir": str(tmp_path), "cache": "none"} | data | options
        run_bundle("train.json", "evaluate.json", *small_files[bundle], **given)
        data |= {"dataset_dir": str(scans / "test/images"), "datalist": str(scans / "test/images")}
        output = tmp_path / "predictions"
        run_bundle("inference.json", *small_files[bundle], workflow_type="inference", output_dir=str(output), **data)
        return tmp_path / "eval", output

    return run


def test_native_scores_are_those_of_the_written_files(evaluated, scans, bundle):
    folder, predictions = evaluated(bundle, nsd_tolerance=6.0)
    again_file = str(folder / "again.csv")
    score(str(scans / "test/labels"), str(predictions), again_file, names=",".join(NAMES), tolerance=6.0)
    again = {(row["case"], row["class"]): row for row in rows(folder / "again.csv")}
    own = rows(folder / "scores.csv")
    evaluation = json.loads((BUNDLES / bundle / "configs/evaluate.json").read_text())
    has_hd95 = "val_hd95" in evaluation["metrics"]  # TransSeg's paper has Dice alone
    assert [(row["case"], row["class"]) for row in own] == list(again)
    for row in own:
        assert list(row) == ["case", "class", "dice", "nsd"] + ["hd95"] * has_hd95
        for column in list(row)[2:]:
            theirs = float(again[row["case"], row["class"]][column] or "nan")
            assert float(row[column] or "nan") == pytest.approx(theirs, abs=1e-4, nan_ok=True)
    assert 0 < np.nanmean([float(row["nsd"] or "nan") for row in own]) < 1
    for metric, column in (("val_mean_dice", "dice"), ("val_hd95", "hd95")):
        if column == "hd95" and not has_hd95:
            continue
        table = {row["filename"].rpartition("/")[2]: row for row in rows(folder / f"{metric}_raw.csv")}
        for name in SCANS:
            truth = nib.load(scans / f"test/labels/{name}.nii.gz")
            predicted = np.asarray(nib.load(predictions / f"{name}_seg.nii.gz").dataobj)
            assert len(np.unique(predicted)) > 2, "nothing to compare"
            spacing = np.linalg.norm(truth.affine[:3, :3], axis=0)
            for number, structure in enumerate(NAMES, start=1):
                expected = independent(np.asarray(truth.dataobj) == number, predicted == number, spacing)
                found = float(table[f"{name}.nii.gz"][structure])
                assert found == pytest.approx(expected[column == "hd95"], abs=1e-4, rel=1e-4, nan_ok=True)
                assert float(again[name, structure][column] or "nan") == pytest.approx(found, abs=1e-4, nan_ok=True)


def test_the_networks_grid_on_request(evaluated, scans):
    """Without the labels in the margin, which the crop has cut off."""
    folder, _ = evaluated("pretrain_once", native=False)
    table = {row["filename"].rpartition("/")[2]: row for row in rows(folder / "val_mean_dice_raw.csv")}
    assert not (folder / "val_nsd_raw.csv").exists()
    native, _ = evaluated("pretrain_once")
    for row in rows(native / "val_mean_dice_raw.csv"):
        assert float(row["mean"]) != pytest.approx(float(table[row["filename"].rpartition("/")[2]]["mean"]), abs=1e-4)
