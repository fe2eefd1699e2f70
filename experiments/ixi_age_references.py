"""Predict age without training a net: by a constant, or by ridge regression.

The regression reads the volumes of labelled regions, the histogram of the brain's intensities (which knows no anatomy),
or the tissues that a net finds. The script reads the datalist, fractions and seeds of a comparison's settings file, so
the training scans are those of the comparison's arms. It prints the mean absolute error in years on the test list.

    python experiments/ixi_age_references.py bundles/medical_transformer/compare_ixi_age.json --dataset_dir /data/ixi

`--seeds 0,1,2` draws the training scans with these seeds instead of those of the file.

`--bezier True` adds two columns: the same histogram after one random Bezier map of each scan's intensities, which are
those of stage 1 of Medical Transformer. Maps fall in half of the draws (as published), or never.

`--maps FOLDER` adds a column. For each scan NAME the folder holds NAME_seg.nii.gz, a map of four tissues, such as the
included net `synthetic_brain` makes without any mask (its page has the command). Ridge regression reads each tissue's
share of the brain and its median intensity relative to that of white matter (3). CSF has two shares, that of the
ventricles and that around the brain, since the ventricles grow with age.

`--scores FILE.csv` writes the errors of ridge regression on volumes, a row for each test subject, as a reference for
`common.compare` (`--arms scratch,medical_transformer,ridge=FILE.csv`).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import fire
import nibabel as nib
import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from common.data import load_datalist
from common.transforms import RandomBezier

ALPHAS = np.logspace(-2, 6, 17)
CSF, DEEP = 4, 1 / 3
"""CSF counts as that of the ventricles if it lies deeper than this share of the brain's greatest depth."""


@cache
def volumes(label: str) -> dict[int, float]:
    """Return the volume of each region of a label image, in ml."""
    image = nib.load(label)
    regions, counts = np.unique(np.asarray(image.dataobj), return_counts=True)
    millilitres = counts * abs(np.linalg.det(image.affine[:3, :3])) / 1000
    return dict(zip(regions.astype(int).tolist(), millilitres.tolist(), strict=True))


@cache
def brain(image: str) -> np.ndarray:
    """Return the intensities of a skull-stripped scan's voxels above 0."""
    values = np.asarray(nib.load(image).dataobj, dtype=np.float32)
    return values[values > 0]


def histogram(values: np.ndarray, bins: int) -> np.ndarray:
    """Return the normalised histogram of intensities, from the least to the largest."""
    counts, _ = np.histogram((values - values.min()) / np.ptp(values), bins=bins, range=(0, 1))
    return counts / counts.sum()


def mapped(values: np.ndarray, falling: float) -> np.ndarray:
    """Return intensities, as shares of the largest, after one random map that falls with a probability."""
    shares = torch.from_numpy(values / values.max())
    changed: torch.Tensor = RandomBezier(falling, keep_background=False)(shares[None, None])  # no background here
    return changed[0, 0].numpy()


@cache
def tissues(image: str, folder: str) -> np.ndarray:
    """Return shares and relative median intensities of the tissues 1 to 4 in the map of a scan.

    CSF has two shares, in the ventricles and outside. Depth is the distance to the surface of the labelled brain.
    """
    map_ = nib.load(Path(folder) / f"{Path(image).name.removesuffix('.nii.gz')}_seg.nii.gz")
    found = np.asarray(map_.dataobj)
    values = np.asarray(nib.load(image).dataobj, dtype=np.float32)
    depth = distance_transform_edt(found > 0, sampling=map_.header.get_zooms()[:3])
    deep = depth > DEEP * depth.max()
    parts = [*(found == tissue for tissue in (1, 2, 3)), (found == CSF) & deep, (found == CSF) & ~deep]
    shares = np.array([part.sum() for part in parts]) / (found > 0).sum()
    medians = np.array([np.median(values[found == tissue]) for tissue in (1, 2, 3, 4)])
    return np.r_[shares, medians / medians[2]]


def _of(lists: Any, feature: Callable[[Any], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Compute a feature of each training and each test item, shapes (items, numbers)."""
    training, test = (np.array([feature(item) for item in lists[name]]) for name in ("training", "test"))
    return training, test


def main(
    settings: str,
    dataset_dir: str,
    datalist: str | None = None,
    bins: int = 64,
    maps: str | None = None,
    scores: str | None = None,
    seeds: Sequence[int] | None = None,
    bezier: bool = False,
) -> None:
    asked = json.loads(Path(settings).read_text(encoding="utf-8"))
    path = datalist or f"{dataset_dir}/ixi.json"
    names = ["constant", "ridge, volumes", "histogram", *(["Bezier maps", "rising maps"] if bezier else [])]
    names += ["tissues found"] if maps else []
    columns = " ".join(f"{name:>16}" for name in names)
    rows: list[dict[str, Any]] = []
    print(f"{'labels':>6} {columns}   years, mean ± deviation over seeds")
    for fraction in asked["fractions"]:
        errors = []
        for seed in asked["seeds"] if seeds is None else [seeds] if isinstance(seeds, int) else seeds:
            torch.manual_seed(seed)
            lists = load_datalist(path, fraction=fraction, seed=seed, required=["training", "test"])
            regions = sorted({region for item in lists["training"] for region in volumes(item["label"])} - {0})
            x, test = (
                np.array([[volumes(item["label"]).get(region, 0.0) for region in regions] for item in lists[name]])
                for name in ("training", "test")
            )
            age, truth = (np.array([item["age"] for item in lists[name]]) for name in ("training", "test"))
            kinds = [(x, test), _of(lists, lambda item: histogram(brain(item["image"]), bins))]
            for falling in (0.5, 0.0) if bezier else ():
                kinds.append(_of(lists, lambda item, f=falling: histogram(mapped(brain(item["image"]), f), bins)))
            if maps:
                kinds.append(_of(lists, lambda item: tissues(item["image"], maps)))
            predictions = [np.full(len(truth), np.median(age))]
            for known, seen in kinds:
                predictions.append(make_pipeline(StandardScaler(), RidgeCV(ALPHAS)).fit(known, age).predict(seen))
            errors.append([np.abs(predicted - truth).mean() for predicted in predictions])
            for item, error in zip(lists["test"], np.abs(predictions[1] - truth), strict=True):
                subject = str(item.get("subject", item["image"]))
                rows.append({"subject": subject, "value": error, "labels": len(age), "seed": seed})
        mean, spread = np.mean(errors, axis=0), np.std(errors, axis=0, ddof=1)
        cells = " ".join(f"{m:>8.2f} ± {s:.2f}" for m, s in zip(mean, spread, strict=True))
        print(f"{len(lists['training']):>6} {cells}")
    if scores:
        with open(scores, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    fire.Fire(main)
