"""What the scripts in `experiments` compute, on scans made up here; the scripts' figures are of whole data sets."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


def experiment(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "experiments" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_histogram_tells_ages_that_only_intensities_tell(tmp_path, capsys):
    """Scans in which the share of dark tissue is the age, with the same labelled volumes in all of them.

    A rising map leaves two clusters of intensities, and their shares. One that falls in half of the scans swaps them.
    """
    rng = np.random.default_rng(0)
    lists = {"training": [], "validation": [], "test": []}
    for number in range(40):
        age = float(rng.uniform(20, 80))
        image = np.zeros((12, 12, 12), np.float32)
        brain = np.where(rng.random(1000) < age / 100, 0.3, 0.8) + rng.normal(0, 0.02, 1000)
        image[1:11, 1:11, 1:11] = brain.reshape(10, 10, 10)
        for kind, array in (("image", image), ("label", (image > 0).astype(np.uint8))):
            nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / f"{kind}{number}.nii.gz")
        found = np.where(image > 0.55, 3, (image > 0).astype(int)).astype(np.uint8)
        found[1, 1, 1:3] = 2, 4  # tissues without a meaning here
        nib.save(nib.Nifti1Image(found, np.eye(4)), tmp_path / f"image{number}_seg.nii.gz")
        item = {"image": f"image{number}.nii.gz", "label": f"label{number}.nii.gz", "age": age, "subject": str(number)}
        lists["training" if number < 25 else "validation" if number < 28 else "test"].append(item)
    (tmp_path / "ixi.json").write_text(json.dumps({"name": "made up", **lists}))
    (tmp_path / "settings.json").write_text(json.dumps({"fractions": [1.0], "seeds": [0, 1]}))
    given = {"bins": 16, "maps": str(tmp_path), "scores": str(tmp_path / "ridge.csv"), "bezier": True}
    experiment("ixi_age_references").main(str(tmp_path / "settings.json"), str(tmp_path), **given)
    cells = capsys.readouterr().out.splitlines()[1].replace("±", " ").split()
    labels, constant, volumes, intensities, falling, rising, tissues = cells[0], *map(float, cells[1::2])
    assert labels == "25" and max(intensities, tissues) < 4 and min(constant, volumes, falling) > 8, cells
    assert rising < falling - 3, cells
    experiment("ixi_age_references").main(str(tmp_path / "settings.json"), str(tmp_path), seeds=(1, 1), bins=16)
    assert capsys.readouterr().out.splitlines()[1].split()[3::3] == ["0.00"] * 3  # the same draw twice, three columns
    with (tmp_path / "ridge.csv").open() as file:
        rows = list(csv.DictReader(file))  # a reference of common.compare
    assert len(rows) == 12 * 2 and {(row["labels"], row["seed"]) for row in rows} == {("25", "0"), ("25", "1")}
    assert {row["subject"] for row in rows} == {item["subject"] for item in lists["test"]}
    assert abs(np.mean([float(row["value"]) for row in rows]) - volumes) < 0.01


def test_csf_of_the_ventricles_is_counted_apart(tmp_path):
    """A cube of 12 voxels: the greatest depth is 6, so voxels beyond depth 2 are deep."""
    found = np.zeros((14, 14, 14), np.uint8)
    found[1:13, 1:13, 1:13] = 3
    found[1, 1:13, 1] = 4  # 12 voxels at the surface
    found[6:8, 6:8, 6:8] = 4  # 8 in the middle
    found[2, 5, 5], found[3, 8, 8] = 4, 4  # one at depth 2, one at depth 3
    found[1:13, 12, 12], found[4, 4, 4] = 1, 2
    image = np.choose(found, (0, 50, 60, 100, 20)).astype(np.float32)
    for name, array in (("a.nii.gz", image), ("a_seg.nii.gz", found)):
        nib.save(nib.Nifti1Image(array, np.diag([2.0, 2, 2, 1])), tmp_path / name)
    numbers = experiment("ixi_age_references").tissues(str(tmp_path / "a.nii.gz"), str(tmp_path))
    voxels = [12, 1, 12**3 - 12 - 1 - 12 - 8 - 2, 9, 13]
    np.testing.assert_allclose(numbers, [*(count / 12**3 for count in voxels), 0.5, 0.6, 1, 0.2])


def test_the_paired_t_test_of_the_paper(tmp_path):
    """TransSeg, section 4.2: "a 98% level of significance" of three seeds, which is one side's."""
    values = {"ours": (87.13, 86.52, 86.29), "without": (85.18, 84.88, 85.36)}
    rows = [
        f"{arm},1.0,18,{seed},val_pooled_dice,mean,{value},12,25000,1"
        for arm, scores in values.items()
        for seed, value in zip((1234, 5678, 910), scores, strict=True)
    ]
    header = "arm,fraction,labels,seed,metric,structure,value,subjects,steps,seconds"
    (tmp_path / "results.csv").write_text("\n".join([header, *rows]))
    text = experiment("paired_seeds").main(str(tmp_path), "ours", "without")
    assert "seeds 910, 1234, 5678: ours 86.6467 ± 0.4341 and without 85.1400" in text
    assert "difference +1.5067, p 0.019 that ours is not larger, 0.038 on both sides" in text
    rows += [row.replace("1.0,18", "0.5,9").replace(",8", ",7") for row in rows]
    rows.append("other,0.1,2,910,val_pooled_dice,mean,1.0,12,25000,1")
    (tmp_path / "results.csv").write_text("\n".join([header, *rows]))
    with pytest.raises(ValueError, match="scores with 9, 18 labels: choose with --labels"):
        experiment("paired_seeds").main(str(tmp_path), "ours", "without")
    assert experiment("paired_seeds").main(str(tmp_path), "ours", "without", labels=18) == text


def test_shifted_scans_are_what_their_formulas_say(tmp_path):
    module = experiment("shifted_scans")
    image = np.zeros((6, 7, 12))
    image[1:5, 1:6] = 100 + 10 * np.arange(12.0)  # a ramp along the third axis
    inside = image > 0
    shifted = {name: module.shift_scan(image, name, "scan 1") for name in module.SHIFTS}
    for name, changed in shifted.items():
        assert ((changed > 0) == inside).all() and changed.dtype == np.float32
        assert np.array_equal(changed, module.shift_scan(image, name, "scan 1"))
    for name in ("bias", "noise"):  # each scan its own draw
        assert not np.array_equal(shifted[name], module.shift_scan(image, name, "scan 2"))
    np.testing.assert_allclose(shifted["inverse"][2, 2], 310 - image[2, 2], atol=1e-4)
    thick = shifted["thick"][2, 2]  # a line stays one between the centres of the first and the last slab
    np.testing.assert_allclose(thick[1:11], image[2, 2, 1:11], atol=1e-4)
    np.testing.assert_allclose(thick[[0, 11]], image[2, 2, [1, 10]], atol=1e-4)
    ratio = shifted["bias"][inside] / image[inside]
    assert 0.499 < ratio.min() < 0.9 and 1.1 < ratio.max() < 2.001
    flat = np.full((40, 40, 40), 200.0)
    noisy = module.shift_scan(flat, "noise", "scan 1")
    assert abs(noisy.std() - 30) < 1 and abs(np.mean(noisy**2.0) - (200**2 + 2 * 30**2)) < 200  # moments of Rice

    for number in range(3):
        nib.save(nib.Nifti1Image(image.astype(np.uint8), np.eye(4)), tmp_path / f"s{number}.nii.gz")
    items = [[{"image": f"s{number}.nii.gz", "label": f"s{number}.nii.gz"}] for number in range(3)]
    lists = dict(zip(("training", "validation", "test"), items, strict=True))
    (tmp_path / "list.json").write_text(json.dumps({"name": "made up", **lists}))
    path = module.write_scans(tmp_path / "list.json", tmp_path, tmp_path / "shifted", "thick")
    found = json.loads(path.read_text())
    assert found["training"][0]["image"] == found["training"][0]["label"] == str(tmp_path / "s0.nii.gz")
    assert found["test"][0] == {"image": "s2.nii.gz", "label": str(tmp_path / "s2.nii.gz")}
    np.testing.assert_array_equal(nib.load(path.parent / "s2.nii.gz").get_fdata(), shifted["thick"])


def test_shifted_scans_of_one_name_keep_their_folders(tmp_path):
    module, rng = experiment("shifted_scans"), np.random.default_rng(0)
    images = {place: rng.uniform(50, 100, (6, 7, 12)) for place in ("sub-1/t1.nii.gz", "sub-2/t1.nii.gz")}
    for place, image in images.items():
        (tmp_path / place).parent.mkdir()
        nib.save(nib.Nifti1Image(image, np.eye(4)), tmp_path / place)
    lists = {"training": [], "validation": [], "test": [{"image": place} for place in images]}
    (tmp_path / "list.json").write_text(json.dumps(lists))
    path = module.write_scans(tmp_path / "list.json", tmp_path, tmp_path / "shifted", "noise")
    assert [item["image"] for item in json.loads(path.read_text())["test"]] == list(images)
    for place, image in images.items():  # each its own draw
        expected = module.shift_scan(image, "noise", place)
        np.testing.assert_array_equal(nib.load(path.parent / place).get_fdata(dtype=np.float32), expected)


def test_the_stock_net_is_scored_on_each_scan_of_one_name(tmp_path, monkeypatch):
    """Without a step of training: this is about the files."""
    items = []
    for subject in ("sub-1", "sub-2"):
        paths = {kind: tmp_path / "data" / subject / f"{kind}.nii.gz" for kind in ("image", "label")}
        paths["image"].parent.mkdir(parents=True)
        image = np.random.default_rng(len(items)).uniform(1, 2, (16, 16, 16))
        for path, array in zip(paths.values(), (image, (image > 1.5).astype(np.uint8)), strict=True):
            nib.save(nib.Nifti1Image(array, np.eye(4)), path)
        items.append({kind: str(path) for kind, path in paths.items()})
    run = tmp_path / "run"
    run.mkdir()
    plan = {"num_classes": 2, "spacing": [1.0, 1.0, 1.0], "label_map": {"1": [1]}, "in_channels": 1}
    (run / "plan.json").write_text(json.dumps(plan))
    lists = {"training": items[:1], "validation": items[:1], "test": items}
    (run / "datalist.json").write_text(json.dumps(lists))
    monkeypatch.setattr("sys.argv", ["auto_stock", str(run), "--minutes", "0", "--output", str(tmp_path / "stock")])
    experiment("auto_stock").main()
    with (tmp_path / "stock" / "scores.csv").open() as file:
        assert [row["case"] for row in csv.DictReader(file)] == ["sub-1/image", "sub-2/image"]
