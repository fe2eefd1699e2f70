"""A/A test of `common.compare`: compare arms that differ only in the seeds of training, many times.

    python experiments/compare_aa.py --output runs/aa

It trains a small U-Net on the sample at 8 mm, with the bundle's own train.json and evaluate.json. There are 20
repetitions of two arms with two seeds each. Both arms have the same labels and different seeds of initialisation and
training. It prints the verdict of each repetition, which counts as one report. Trained networks stay in the output
folder, so an interrupted call can be repeated. One training takes 2 s on one core.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from monai.bundle import ConfigWorkflow

from common.compare.collect import metric_rows
from common.compare.statistics import compare_arms, judge
from common.data import make_sample

BUNDLE = Path(__file__).resolve().parents[1] / "bundles/pretrain_once/configs"
OVERLAY = {
    "datalist": "$@dataset_dir + '/' + @task + '.json'",
    "spacing": [8.0, 8.0, 8.0],
    "image_size": [20, 32, 20],
    "roi_size": [16, 32, 16],
    "batch_size": 2,
    "crops_per_volume": 1,
    "num_workers": 0,
    "log_images": 0,
    "learning_rate": 0.01,
    "segmentation_net": {
        "_target_": "UNet",
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": "@num_classes",
        "channels": [8, 16, 32],
        "strides": [2, 2],
        "norm": "BATCH",
    },
    "encoder": None,
}


def main(words: list[str] | None = None) -> dict[str, int]:
    """Count the verdicts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/aa"))
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--subjects", type=int, default=16)
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    given.output.mkdir(parents=True, exist_ok=True)
    data = given.output / "sample"
    if not data.is_dir():
        make_sample(data, subjects=given.subjects, unlabelled=0, spacing=4.0, progress=False)
    overlay = given.output / "overlay.json"
    scheme = json.loads((BUNDLE / "datasets/sample.json").read_text())
    ids = {"label_scheme": scheme["label_scheme"]}
    ids |= {"max_epochs": given.epochs, "checkpoint_interval": given.epochs, "val_interval": given.epochs // 4}
    overlay.write_text(json.dumps(OVERLAY | ids))
    counts: dict[str, int] = {}
    misled = 0  # false verdicts from subjects alone
    for repetition in range(given.repetitions):
        arms: list[dict[tuple[int, str], float]] = [{}, {}]
        for seed in range(given.seeds):
            draw = repetition * given.seeds + seed
            for number, arm in enumerate(arms):
                scores = train(given.output / f"runs/{draw}-{number}", overlay, data, draw, draw + 10_000 * number)
                arm.update({(seed, subject): score for subject, score in scores.items()})
        found = compare_arms(*arms, True)
        [verdict] = judge([found], 0.01, True)
        counts[verdict.text] = counts.get(verdict.text, 0) + 1
        low, high = found.over_subjects or (0.0, 0.0)
        misled += not low <= 0 <= high
        low, high = found.interval
        print(f"{repetition}: {verdict.text}, {found.parts.mean:+.3f} ({low:+.3f} to {high:+.3f})", flush=True)
    print(", ".join(f"{text}: {count}" for text, count in sorted(counts.items())))
    print(f"intervals over subjects alone that do not hold zero: {misled} of {given.repetitions}")
    return counts


def train(folder: Path, overlay: Path, data: Path, labels: int, seed: int) -> dict[str, float]:
    """Train from scratch and return the test Dice of each subject."""
    table = folder / "eval/val_mean_dice_raw.csv"
    if not table.is_file():
        shared = {
            "dataset_dir": str(data),
            "output_dir": str(folder),
            "seed": seed,
            "data#seed": labels,
            "fraction": 0.5,
        }
        for files in (["train.json"], ["train.json", "evaluate.json"]):
            workflow = ConfigWorkflow(
                config_file=[*(str(BUNDLE / name) for name in files), str(overlay)],
                meta_file=str(BUNDLE / "metadata.json"),
                logging_file=False,
                workflow_type="train",
                bundle_root=str(BUNDLE.parent),
                **shared,
            )
            workflow.initialize()
            workflow.run()
            workflow.finalize()
    return {row["filename"]: float(row["mean"]) for row in metric_rows(table)}


if __name__ == "__main__":
    main()
