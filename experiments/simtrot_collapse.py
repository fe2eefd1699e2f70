"""Test whether tokens encode only their position, by form of the weight, by mask, and by mask cells per token.

    python experiments/simtrot_collapse.py --datalist /data/hippocampus/hippocampus.json

It pre-trains the tiny nnFormer of `presets/hippocampus_cpu.json` for some steps, once for each setting, with the
bundle's own configs. For the net before and after training, it evaluates the first 20 validation volumes. It prints how
often a token of a masked volume finds its own volume (`common.metrics.retrieval_rate`), the mean cosine of tokens of
different volumes at the same and at different positions (`common.metrics.position_cosines`), and their rank.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigWorkflow

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common.evaluation_mode import evaluation_mode  # noqa: E402
from common.metrics import effective_rank, position_cosines, retrieval_rate  # noqa: E402
from common.transforms.token_views import noise_mask  # noqa: E402

CONFIGS = ROOT / "bundles" / "simtrot" / "configs"
FILES = ("pretrain.json", "datasets/hippocampus.json", "presets/hippocampus_cpu.json")
VOLUMES = 20
WEIGHT = "pretext_loss#weight_form"
OLD = {"roi_size": [32, 48, 32], "mask_size": [4, 4, 4]}  # of the first measurement
SETTINGS: dict[str, dict[str, Any]] = {
    "8 cells, 75 %, sum": {**OLD, WEIGHT: "sum"},
    "8 cells, 75 %, exponent": OLD,
    "64 cells, 75 %, sum": {WEIGHT: "sum"},
    "64 cells, 75 %, exponent": {},
    "64 cells, 60 %, exponent": {"mask_ratio": 0.6},
    "64 cells, 40 %, exponent": {"mask_ratio": 0.4},
}


def measure(datalist: Path, **overrides: Any) -> tuple[list[float], list[float]]:
    """Measure retrieval with masks of 75 and 40 %, both cosines and the rank, before and after one pre-training."""
    with tempfile.TemporaryDirectory() as folder:
        workflow = ConfigWorkflow(
            config_file=[str(CONFIGS / name) for name in FILES],
            meta_file=str(CONFIGS / "metadata.json"),
            logging_file=False,
            workflow_type="train",
            dataset_dir=str(datalist.parent),
            datalist=str(datalist),
            output_dir=folder,
            max_epochs=1,
            val_interval=1,
            log_images=0,
            **overrides,
        )
        workflow.initialize()
        encoder, pretext, data = (
            workflow.parser.get_parsed_content(name) for name in ("encoder", "network_def", "validate#dataset")
        )
        images = torch.stack([torch.as_tensor(data[number]["image"]) for number in range(VOLUMES)])

        def look() -> list[float]:
            def tokens(image: torch.Tensor) -> torch.Tensor:
                return encoder(image)[-1].flatten(2).transpose(1, 2)

            with evaluation_mode(encoder):
                torch.manual_seed(0)
                whole = tokens(images)
                masked = [noise_mask(images, ratio, pretext.views.mask_size)[0] for ratio in (0.75, 0.4)]
                found = [retrieval_rate(tokens(image), whole) for image in masked]
                return [float(x) for x in (*found, *position_cosines(whole), effective_rank(whole.flatten(0, 1)))]

        before = look()
        workflow.run()
        return before, look()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datalist", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--settings", nargs="*", choices=tuple(SETTINGS), default=list(SETTINGS))
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # MONAI logs three times per run where it looks for metadata
    print("| setting | steps | retrieval at 75 % | at 40 % | same position | other position | effective rank |")
    print("|---|---|---|---|---|---|---|")
    for name in arguments.settings:
        own = {"batches_per_epoch": arguments.steps, "batch_size": arguments.batch_size}
        found = measure(arguments.datalist.resolve(), **own, **SETTINGS[name])
        for steps, (masked, lightly, same, other, rank) in zip((0, arguments.steps), found, strict=True):
            print(
                f"| {name} | {steps} | {masked:.3f} | {lightly:.3f} | {same:.4f} | {other:.3f} | {rank:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
