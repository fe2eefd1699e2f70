"""What the scripts in `experiments` compute, on scans made up here; the scripts' figures are of whole data sets."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import nibabel as nib
import numpy as np

ROOT = Path(__file__).resolve().parents[1]


def experiment(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "experiments" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_histogram_tells_ages_that_only_intensities_tell(tmp_path, capsys):
    """Scans in which the share of dark tissue is the age, with the same labelled volumes in all of them."""
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
    experiment("ixi_age_references").main(str(tmp_path / "settings.json"), str(tmp_path), bins=16, maps=str(tmp_path))
    cells = capsys.readouterr().out.splitlines()[1].replace("±", " ").split()
    labels, constant, volumes, intensities, tissues = cells[0], *map(float, cells[1::2])
    assert labels == "25" and max(intensities, tissues) < 4 and min(constant, volumes) > 8


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
