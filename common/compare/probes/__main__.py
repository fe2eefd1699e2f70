"""``python -m common.compare.probes``: judge a frozen encoder without fine-tuning."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fire

from ...checks import own_sentence
from ...peak_memory import record_gpu_peak
from .runner import run_probes


def main(
    config_file: str | Sequence[str],
    target: str,
    output: str,
    kind: str | None = None,
    neighbours: int = 5,
    training_voxels: int = 2000,
    test_voxels: int = 4000,
    **overrides: Any,
) -> None:
    """Judge the frozen encoder of a bundle's train.json by simple predictors on its features.

    Any further --id value overrides an id of the config: --pretrained_encoder encoder.safetensors (without it the
    encoder is random), --dataset_dir, --seed, and nested ids with #.

    Args:
        config_file: train.json and overlays, as "['a.json','b.json']".
        target: label, or another key of the datalist's items, such as age or diagnosis.
        output: JSON file to write.
        kind: class or number, if the target's values do not decide it.
        neighbours: number of nearest neighbours.
        training_voxels: voxels per training volume, for label images.
        test_voxels: voxels per test volume, for label images.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    record_gpu_peak()
    content = run_probes(
        config_file, overrides, target, output,
        kind=kind, neighbours=neighbours, training_voxels=training_voxels, test_voxels=test_voxels,
    )  # fmt: skip
    print(f"{target}, {content['labels']} training items")
    for row in content["rows"]:
        print(f"{row['probe']:<6}  {row['metric']:<8}  {row['structure']:<4}  {row['value']:.4g}")
    print(f"written to {Path(output).absolute()}")


if __name__ == "__main__":
    try:
        fire.Fire(main, name="python -m common.compare.probes")
    except (ValueError, OSError, RuntimeError) as error:
        # MONAI wraps what a component raises, and says less.
        raise SystemExit(f"error: {own_sentence(error) or error}") from error
