"""Does MAE pre-training help on IXI, with 1, 5 and 20 masks? The table in the README of bundles/pretrain_once.

    python experiments/ixi_label_efficiency.py --data /path/to/ixi --output runs/ixi

`--data` holds `t1/` and `labels/` (DLMUSE numbering). One pre-training on all images without their labels, then
fine-tuning of four structures from that encoder and from scratch, same masks, same number of steps, several seeds,
evaluated on the same held-out part. Every run is one of the bundle's own configs with the overrides that the text
files beside it state. Finished runs are kept, so an interrupted call can be repeated, and two calls with one of
`--arms` each may share an output folder.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "bundles" / "pretrain_once" / "configs"
TRAINING = 100  # items of the training list; fractions of it give the numbers of masks


def run_bundle(files: list[str], output: Path, **overrides) -> None:
    """Run the bundle in this process as `python -m monai.bundle run` would."""
    from monai.bundle import ConfigWorkflow

    paths = [str(CONFIGS / name) for name in [*files, "datasets/ixi.json", "presets/cpu.json"]]
    output.mkdir(parents=True, exist_ok=True)
    arguments = " ".join(f"--{key} '{value}'" for key, value in overrides.items())
    command = f'python -m monai.bundle run --config_file "{paths}" --output_dir {output} {arguments}'
    (output / f"{Path(files[-1]).stem}.txt").write_text(command + "\n")
    workflow = ConfigWorkflow(
        config_file=paths,
        meta_file=str(CONFIGS / "metadata.json"),
        logging_file=str(CONFIGS / "logging.conf"),
        workflow_type="train",
        output_dir=str(output),
        **overrides,
    )
    started = time.time()
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    logging.getLogger(__name__).info("%s took %.0f s", output, time.time() - started)


def dice(folder: Path) -> float | None:
    """Mean over volumes and structures of an evaluated run."""
    table = folder / "eval" / "val_mean_dice_raw.csv"
    if not table.exists():
        return None
    rows = list(csv.DictReader(table.open(), skipinitialspace=True))
    return statistics.mean(float(row["mean"]) for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--masks", type=int, nargs="+", default=[1, 5, 20])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=["scratch", "mae"])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--pretrain_epochs", type=int, default=120)
    parser.add_argument("--learning_rate", type=float, default=0.001)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()

    import torch

    sys.path.insert(0, str(ROOT))
    from common.data.prepare import prepare

    torch.set_num_threads(arguments.threads)
    output = arguments.output.resolve()
    datalist = output / "ixi.json"
    if not datalist.exists():
        prepare("ixi", arguments.data, datalist, validation=5, test=40, seed=0)
    common = {"datalist": str(datalist), "dataset_dir": str(output)}

    encoder = output / "pretrain" / "encoder.safetensors"
    if "mae" in arguments.arms and not encoder.exists():  # written when pre-training completes
        run_bundle(
            ["pretrain.json"],
            encoder.parent,
            resume=True,
            max_epochs=arguments.pretrain_epochs,
            batch_size=4,
            learning_rate=0.0005,
            lists=["training", "validation", "test"],
            checkpoint_interval=50,
            **common,
        )
    runs = [(m, seed, arm) for m in arguments.masks for seed in arguments.seeds for arm in arguments.arms]
    for masks, seed, arm in runs:
        folder = output / f"masks{masks:02d}" / f"seed{seed}" / arm
        if (folder / "eval" / "metrics.csv").exists():
            continue
        options = {
            # One volume in two augmented copies: with a batch of one, small grids miss the fast convolution on CPUs.
            "batch_size": 1,
            "crops_per_volume": 2,
            "max_epochs": arguments.steps // masks,
            "val_interval": max(1, arguments.steps // masks // 4),
            "checkpoint_interval": max(1, arguments.steps // masks // 4),
            "learning_rate": arguments.learning_rate,
            "fraction": masks / TRAINING,
            "seed": seed,
            **common,
        }
        if arm == "mae":
            options["pretrained_encoder"] = str(encoder)
        run_bundle(["train.json"], folder, resume=True, **options)
        run_bundle(["train.json", "evaluate.json"], folder, **options)
        (folder / "train.ckpt").unlink()

    table = {}
    for masks, seed, arm in runs:
        table.setdefault(masks, {}).setdefault(arm, {})[seed] = dice(output / f"masks{masks:02d}" / f"seed{seed}" / arm)
    (output / "table.json").write_text(json.dumps(table, indent=4))
    print(f"{'masks':>5}  " + "  ".join(f"{arm:>16}" for arm in arguments.arms))
    for masks, arms in table.items():
        cells = []
        for arm in arguments.arms:
            values = [value for value in arms[arm].values() if value is not None]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.3f} ± {spread:.3f} ({len(values)})" if values else "-")
        print(f"{masks:>5}  " + "  ".join(f"{cell:>16}" for cell in cells))


if __name__ == "__main__":
    main()
