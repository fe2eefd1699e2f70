"""Training steps of every bundle on a GPU, at the size of its paper, with its own loader.

python benchmarks/gpu.py                          all bundles, pre-training and fine-tuning, a table on the screen
python benchmarks/gpu.py --bundle simtrot         one of them
python benchmarks/gpu.py --dry                    the same code on a CPU, tiny; its figures mean nothing

Without a GPU it ends at once and says so. The images come from the sample of `common.data.make_sample`, resampled and
cropped as `pretrain.json` and `train.json` say, with their networks and batches. It measures images per second, the
share of time in which the GPU waits for images, and peak memory, in float32, with TF32, in bfloat16, and in compiled
bfloat16. The baseline is the same network moved by `.to(device)` alone, in float32, as in MONAI's bundles (UNETR with
MONAI's own attention). Each measurement runs in a separate process. The device is synchronised after each step.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # the code beside this folder, not some other `common`

import torch  # noqa: E402

BUNDLES = HERE.parent / "bundles"
PARTS = {"pretrain": "pre-training", "train": "fine-tuning"}
# Ids that `datasets/sample.json` makes small for CPUs. The base file has the paper's values.
PAPER = (
    "spacing", "image_size", "roi_size", "mask_size", "map_size", "batch_size", "crops_per_volume", "num_workers",
    "augmentation", "segmentation_net", "encoder", "head", "head_features", "pretext", "pretext_loss", "optimizer",
)  # fmt: skip
PLAIN: dict[str, Any] = {"network": "$@network_def.to(@device)"}
WAYS: dict[str, tuple[dict[str, Any], str]] = {
    "plain": (PLAIN, "highest"),
    "float32": ({"amp": False}, "highest"),
    "TF32": ({"amp": False}, "high"),
    "bfloat16": ({"amp": True}, "high"),
    "bfloat16, compiled": ({"amp": True, "network#compile": True}, "high"),
}


class Figures(NamedTuple):
    images_per_second: float
    waiting: float
    """Share of time in which the device waits for images."""
    peak: float | None
    """Peak GB on the device; None on a CPU."""


class Enough(Exception):
    """Raised to end a training."""


def time_steps(trainer: Any, batch_size: int, warm_up: int, steps: int) -> Figures:
    """Run the first steps of a training, then end it."""
    from ignite.engine import Events

    cuda = trainer.state.device.type == "cuda"
    taken, waited = [], []
    clock = {"batch": 0.0, "waited": 0.0}

    def batch_started() -> None:
        clock["batch"] = time.perf_counter()

    def batch_completed() -> None:
        clock["waited"] = time.perf_counter() - clock["batch"]

    def step_completed() -> None:
        if cuda:
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - clock["batch"])
        waited.append(clock["waited"])
        if len(taken) == warm_up and cuda:
            torch.cuda.reset_peak_memory_stats()
        if len(taken) == warm_up + steps:
            raise Enough

    trainer.add_event_handler(Events.GET_BATCH_STARTED, batch_started)
    trainer.add_event_handler(Events.GET_BATCH_COMPLETED, batch_completed)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, step_completed)
    try:
        trainer.run()
    except Enough:
        pass
    else:
        raise RuntimeError(f"the training ended before {warm_up + steps} steps: give it more epochs.")
    total = sum(taken[warm_up:])
    peak = torch.cuda.max_memory_allocated() / 1e9 if cuda else None
    return Figures(batch_size * steps / total, sum(waited[warm_up:]) / total, peak)


def settings(bundle: str, part: str, small: bool) -> tuple[list[str], dict[str, Any]]:
    """Return config files and values of a training at the paper's size, or at the small size of the tests."""
    configs = BUNDLES / bundle / "configs"
    base = json.loads((configs / f"{part}.json").read_text(encoding="utf-8"))
    if small:
        form = json.loads((configs.parent / "small.json").read_text(encoding="utf-8"))
        files, values = form["files"], dict(form["values"])
    else:
        sample = json.loads((configs / "datasets/sample.json").read_text(encoding="utf-8"))
        files, values = (
            ["datasets/sample.json"],
            {name: base[name] for name in PAPER if name in base and name in sample},
        )
    # The training ends before its first validation.
    values |= {name: 1000 for name in ("max_epochs", "val_interval") if name in base}
    return [str(configs / name) for name in (f"{part}.json", *files)], values


def _work(pipe: Connection, threads: int, bundle: str, part: str, way: str, dry: bool) -> None:
    from monai.bundle import ConfigWorkflow

    values, precision = WAYS[way]
    files, size = settings(bundle, part, dry)
    device = torch.device("cpu" if dry else "cuda")
    with tempfile.TemporaryDirectory() as output:
        workflow = ConfigWorkflow(
            config_file=files,
            meta_file=str(BUNDLES / bundle / "configs/metadata.json"),
            logging_file=False,
            workflow_type="train",
            **(size | values | {"output_dir": output, "device": device}),
        )
        workflow.initialize()
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = precision == "high"
        network = workflow.parser.get_parsed_content("network_def")
        if way == "plain":
            for module in network.modules():
                if hasattr(module, "use_flash_attention"):
                    module.use_flash_attention = False
        batch_size = workflow.parser.get_parsed_content("batch_size")
        warm_up, steps = (1, 1) if dry else (10, 30)
        answer = time_steps(workflow.trainer, batch_size, warm_up, steps)
    while pipe.recv() != "stop":
        pipe.send(answer)


def rows(bundle: str, part: str, dry: bool) -> list[str]:
    from timing import Side

    lines = []
    for way in ("plain", "bfloat16") if dry else WAYS:
        side = Side(_work, bundle, part, way, dry)
        try:
            found = Figures(*side.ask("figures"))
            figures = f"{found.images_per_second:.3g} | {100 * found.waiting:.0f} % | " + (
                "" if found.peak is None else f"{found.peak:.3g} GB"
            )
            side.stop()
        except (EOFError, OSError):  # it ended with an error, which was printed; for example, memory ran out
            figures = "failed | |"
        lines.append(f"| {bundle}, {PARTS[part]} | {way} | {figures} |")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="Training steps of every bundle on a GPU, at the size of its paper.")
    names = sorted(path.parent.name for path in BUNDLES.glob("*/small.json"))
    parser.add_argument("--bundle", choices=names, help="one bundle (default: all)")
    parser.add_argument("--part", choices=PARTS, help="one part (default: both)")
    parser.add_argument("--dry", action="store_true", help="on a CPU at a tiny size, only to see that it runs")
    parser.add_argument("--output", type=Path, help="file for the table")
    arguments = parser.parse_args()
    if not arguments.dry and not torch.cuda.is_available():
        print(
            f"benchmarks/gpu.py measures an NVIDIA GPU, and torch {torch.__version__} sees none: nothing is measured."
        )
        return
    where = "a CPU, tiny sizes: these figures mean nothing" if arguments.dry else torch.cuda.get_device_name()
    head = [
        f"{where}; Python {platform.python_version()}, torch {torch.__version__}.",
        "",
        "| bundle | way | images a second | GPU waits | peak memory |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    print("\n".join(head), flush=True)
    lines = [
        line
        for bundle in ([arguments.bundle] if arguments.bundle else names)
        for part in ([arguments.part] if arguments.part else PARTS)
        for line in rows(bundle, part, arguments.dry)
    ]
    if arguments.output:
        arguments.output.write_text("\n".join(head + lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
