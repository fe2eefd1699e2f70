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
        item = {"image": f"image{number}.nii.gz", "label": f"label{number}.nii.gz", "age": age, "subject": str(number)}
        lists["training" if number < 25 else "validation" if number < 28 else "test"].append(item)
    (tmp_path / "ixi.json").write_text(json.dumps({"name": "made up", **lists}))
    (tmp_path / "settings.json").write_text(json.dumps({"fractions": [1.0], "seeds": [0, 1]}))
    experiment("ixi_age_references").main(str(tmp_path / "settings.json"), str(tmp_path), bins=16)
    cells = capsys.readouterr().out.splitlines()[1].replace("±", " ").split()
    labels, constant, volumes, intensities = cells[0], *map(float, cells[1::2])
    assert labels == "25" and intensities < 4 and min(constant, volumes) > 8
