"""How well age is told without a net: by a constant, and by ridge regression on the volumes of labelled regions and on
the histogram of the brain's intensities, which knows no anatomy.

Reads the datalist, the fractions and the seeds of a comparison's settings file, so that the training scans are the
very ones that its arms have, and prints the mean absolute error in years on the test list.

    python experiments/ixi_age_references.py bundles/medical_transformer/compare_ixi_age.json --dataset_dir /data/ixi
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import fire
import nibabel as nib
import numpy as np
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from common.data import load_datalist

ALPHAS = np.logspace(-2, 6, 17)


@cache
def volumes(label: str) -> dict[int, float]:
    """Millilitres of each region of a label image."""
    image = nib.load(label)
    regions, counts = np.unique(np.asarray(image.dataobj), return_counts=True)
    millilitres = counts * abs(np.linalg.det(image.affine[:3, :3])) / 1000
    return dict(zip(regions.astype(int).tolist(), millilitres.tolist(), strict=True))


@cache
def histogram(image: str, bins: int) -> np.ndarray:
    """Shares of the voxels above 0 of a skull-stripped scan, by intensity between its least and its greatest."""
    values = np.asarray(nib.load(image).dataobj, dtype=np.float32)
    values = values[values > 0]
    counts, _ = np.histogram((values - values.min()) / np.ptp(values), bins=bins, range=(0, 1))
    return counts / counts.sum()


def main(settings: str, dataset_dir: str, datalist: str | None = None, bins: int = 64) -> None:
    asked = json.loads(Path(settings).read_text(encoding="utf-8"))
    path = datalist or f"{dataset_dir}/ixi.json"
    print(
        f"{'labels':>6} {'constant':>16} {'ridge, volumes':>16} {'histogram':>16}   years, mean ± deviation over seeds"
    )
    for fraction in asked["fractions"]:
        errors = []
        for seed in asked["seeds"]:
            lists = load_datalist(path, fraction=fraction, seed=seed, required=["training", "test"])
            regions = sorted({region for item in lists["training"] for region in volumes(item["label"])} - {0})
            x, test = (
                np.array([[volumes(item["label"]).get(region, 0.0) for region in regions] for item in lists[name]])
                for name in ("training", "test")
            )
            age, truth = (np.array([item["age"] for item in lists[name]]) for name in ("training", "test"))
            ridge = make_pipeline(StandardScaler(), RidgeCV(ALPHAS)).fit(x, age)
            shares, seen = (
                np.array([histogram(item["image"], bins) for item in lists[name]]) for name in ("training", "test")
            )
            of_intensities = make_pipeline(StandardScaler(), RidgeCV(ALPHAS)).fit(shares, age)
            predictions = (np.full(len(truth), np.median(age)), ridge.predict(test), of_intensities.predict(seen))
            errors.append([np.abs(predicted - truth).mean() for predicted in predictions])
        mean, spread = np.mean(errors, axis=0), np.std(errors, axis=0, ddof=1)
        cells = " ".join(f"{m:>8.2f} ± {s:.2f}" for m, s in zip(mean, spread, strict=True))
        print(f"{len(lists['training']):>6} {cells}")


if __name__ == "__main__":
    fire.Fire(main)
