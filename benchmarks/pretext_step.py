"""Steps of pre-training against those of an earlier revision of this repository, in turns.

python benchmarks/pretext_step.py a09bb7b               all pretexts, into RESULTS.md
python benchmarks/pretext_step.py HEAD --only byol      one of them, on the screen

Each side runs `pretrain.json` on the sample's scans, as the bundles of its own revision come, and its trainer: forward
pass, loss, backward pass and optimiser. Loading is left out; augmentation on the device is part of a step. Networks are
the papers' (nnFormer is a small one); crops are smaller, so that a CPU can do them. Needs git. Times are CPU times with
one thread, and those of the clock with more: the least of the repeated steps. Stage 2 of Medical Transformer is left
out, since it needs an encoder of each revision.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from timing import Row, Side

ROOT = Path(__file__).resolve().parents[1]
Case = tuple[str, tuple[str, ...], dict[str, Any]]  # bundle, files, ids
SAMPLE = "datasets/sample.json"
CUBE = {"roi_size": [96, 96, 96], "image_size": [96, 96, 96]}
CASES: dict[str, Case] = {
    "MAE, UNETR 16/768, 2 x 96^3": ("pretrain_once", ("pretrain.json", SAMPLE, "networks/unetr.json"), CUBE),
    "RCR, Swin UNETR 48, 2 x 64^3": (
        "pretrain_once",
        ("pretrain.json", SAMPLE, "networks/swin_unetr.json"),
        {"roi_size": [64, 64, 64], "image_size": [64, 80, 64]},
    ),
    "exemplars, stage 1 of Medical Transformer, 2 x 80x96x80": (
        "medical_transformer",
        ("pretrain.json", SAMPLE),
        {"spacing": [2.0, 2.0, 2.0], "roi_size": [80, 96, 80]},
    ),
    "several domains, Med3D ResNet-10, 2 x 64^3": (
        "med3d",
        ("pretrain.json", SAMPLE, "networks/resnet10.json"),
        {"roi_size": [64, 64, 64], "image_size": [64, 80, 64], "batch_size": 2},
    ),
    "masked image modelling, BEiT-B, 2 slices of 224^2": (
        "transseg",
        ("pretrain.json", SAMPLE, "networks/beit.json"),
        {"image_size": [224, 224], "batch_size": 2},
    ),
} | {
    f"{name}, small nnFormer, 2 x 64^3": (
        "simtrot",
        ("pretrain.json", SAMPLE, "networks/nnformer_small.json", f"pretexts/{file}.json"),
        {"batch_size": 2},
    )
    for name, file in (
        ("SimTROT", "simtrot"),
        ("B-TROT", "btrot"),
        ("SimCLR", "simclr"),
        ("BYOL", "byol"),
        ("SimMIM", "simmim"),
        ("RCR", "rcr"),
    )
}
WARM_UP = 1


def main() -> None:
    import run  # not at the top: it puts the code beside this folder before that of an earlier revision

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("revision", help="the earlier revision, as git names it")
    parser.add_argument("--only", default="", help="pretexts with this in their name; prints them and writes nothing")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each side (default: 3)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    arguments = parser.parse_args()
    names = [name for name in CASES if arguments.only.lower() in name.lower()]
    if not names:
        parser.error(f"no pretext has {arguments.only!r} in its name; there are: {'; '.join(CASES)}.")
    found = _git("rev-parse", "--short", "--verify", f"{arguments.revision}^{{commit}}")
    if found.returncode:
        parser.error(f"git knows no commit {arguments.revision!r}.")
    commit = found.stdout.decode().strip()
    torch.set_num_threads(arguments.threads)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(_git("archive", commit).stdout)) as tar:
            tar.extractall(folder, filter="data")
        for name in names:
            print(f"{name} ...", file=sys.stderr, flush=True)
            rows.append(_row(name, Path(folder), arguments.steps))
    text = f"Baseline: `{commit}`.\n\n" + run.table(rows, "cpu")
    print(text)
    if not arguments.only:
        run.write_section(run.HERE / "RESULTS.md", "pretext_step", text)


def _git(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, check=False)


def _row(name: str, old: Path, steps: int) -> Row:
    """Both sides load, and then make steps in turns."""
    sides = [Side(_work, tree, *CASES[name], WARM_UP + steps) for tree in (old, ROOT)]
    try:
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(WARM_UP + steps):
            for side, taken in zip(sides, times, strict=True):
                taken.append(side.ask("step"))
        return Row(name, *(min(taken[WARM_UP:]) for taken in times))
    except (EOFError, OSError):
        sys.exit(f"error: a side of {name!r} ended; its own error is printed above.")
    finally:
        for side in sides:
            side.process.kill()


def _work(
    pipe: Connection, threads: int, tree: Path, bundle: str, files: Sequence[str], override: dict[str, Any], steps: int
) -> None:
    """One side: its revision's own `common`, configs, and MONAI's own workflow."""
    sys.path.insert(0, str(tree))
    from ignite.engine import Events
    from monai.bundle import ConfigWorkflow

    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    configs = tree / "bundles" / bundle / "configs"
    with tempfile.TemporaryDirectory() as output:
        workflow = ConfigWorkflow(
            workflow_type="train",
            config_file=[str(configs / file) for file in files],
            meta_file=str(configs / "metadata.json"),
            logging_file=False,
            bundle_root=str(configs.parent),
            output_dir=output,
            batches_per_epoch=steps,
            max_epochs=1,
            **{"num_workers": 0, **override},
        )
        workflow.initialize()
        started = 0.0

        def wait() -> None:
            nonlocal started
            pipe.recv()
            started = clock()

        trainer = workflow.parser.get_parsed_content("train#trainer")
        trainer.add_event_handler(Events.ITERATION_STARTED, wait)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: pipe.send(clock() - started))
        trainer.run()


if __name__ == "__main__":
    main()
