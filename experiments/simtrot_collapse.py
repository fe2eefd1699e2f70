"""Whether tokens say only where they lie: with and without rotate-and-restore, the weight, and the mask.

    python experiments/simtrot_collapse.py --datalist /data/hippocampus/hippocampus.json

Pre-trains the tiny nnFormer of `presets/hippocampus_cpu.json` for a few epochs, once for each combination, by the
bundle's own configs, and prints for the epochs the mean cosine of the encoder's tokens of different volumes at the same
and at different positions (`common.metrics.position_cosines`, on unchanged crops of training volumes, in evaluation
mode), their effective rank, and the loss.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
import tempfile
from pathlib import Path

from ignite.engine import Events
from monai.bundle import ConfigWorkflow

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

CONFIGS = ROOT / "bundles" / "simtrot" / "configs"
FILES = ("pretrain.json", "datasets/hippocampus.json", "presets/hippocampus_cpu.json")


def measure(datalist: Path, epochs: int, **overrides) -> list[dict[str, float]]:
    """Metrics of each epoch of one pre-training."""
    seen: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        workflow = ConfigWorkflow(
            config_file=[str(CONFIGS / name) for name in FILES],
            meta_file=str(CONFIGS / "metadata.json"),
            logging_file=False,
            workflow_type="train",
            dataset_dir=str(datalist.parent),
            datalist=str(datalist),
            output_dir=folder,
            max_epochs=epochs,
            val_interval=1,
            **overrides,
        )
        workflow.initialize()
        trainer = workflow.parser.get_parsed_content("train#trainer")
        validator = workflow.parser.get_parsed_content("validate#evaluator")
        trainer.add_event_handler(
            Events.EPOCH_COMPLETED, lambda engine: seen.append(engine.state.metrics | validator.state.metrics)
        )
        workflow.run()
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datalist", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--mask_ratio", type=float, nargs="*", default=[0.75, 0.0])
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # MONAI says three times a run where it looks for metadata
    print("| mask | turned | w | epoch | same position | other position | effective rank | validation loss |")
    print("|---|---|---|---|---|---|---|---|")
    for ratio, axes, weight in itertools.product(arguments.mask_ratio, (None, [-3, -1]), (1.0, 5.0)):
        settings = {"turned_axes": axes, "mask_ratio": ratio, "pretext_loss#weight": weight}
        seen = measure(arguments.datalist.resolve(), arguments.epochs, batch_size=arguments.batch_size, **settings)
        for epoch in sorted({1, len(seen)}):
            m = seen[epoch - 1]
            print(
                f"| {ratio} | {'yes' if axes else 'no'} | {weight:g} | {epoch} | {m['same_position_cosine']:.4f} | "
                f"{m['other_position_cosine']:.3f} | {m['effective_rank']:.1f} | {m['val_loss']:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
