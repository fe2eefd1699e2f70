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
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

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
    from timing import Row

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("revision", help="the earlier revision, as git names it")
    parser.add_argument("--only", help="pretexts with this in their name; prints them and writes nothing")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each side (default: 3)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        commit = subprocess.run(
            ["git", "-C", str(ROOT), "rev-parse", "--short", arguments.revision], check=True, capture_output=True
        ).stdout.decode()
        archive = Path(folder, "old.tar")
        subprocess.run(["git", "-C", str(ROOT), "archive", "-o", str(archive), arguments.revision], check=True)
        old = Path(folder, "old")
        with tarfile.open(archive) as tar:
            tar.extractall(old, filter="data")
        names = [name for name in CASES if (arguments.only or "").lower() in name.lower()]
        rows = []
        for name in names:
            print(f"{name} ...", file=sys.stderr, flush=True)
            rows.append(Row(name, *_times(name, old, arguments)))
    run.torch.set_num_threads(arguments.threads)
    text = f"Baseline: `{commit.strip()}`.\n\n" + run.table(rows, "cpu")
    print(text)
    if not arguments.only:
        run.write_section(run.HERE / "RESULTS.md", "pretext_step", text)


def _times(name: str, old: Path, arguments: argparse.Namespace) -> tuple[float, float]:
    """Both sides load, and then each makes one step when it is told to."""
    sides = [_Side(tree, CASES[name], arguments) for tree in (old, ROOT)]
    try:
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(arguments.steps + WARM_UP):
            for side, taken in zip(sides, times, strict=True):
                taken.append(side.step())
        before, now = (min(taken[WARM_UP:]) for taken in times)
        return before, now
    finally:
        for side in sides:
            side.stop()


class _Side:
    """The trainer of one tree in a process of its own, which makes a step for each line that it reads."""

    def __init__(self, tree: Path, case: Case, arguments: argparse.Namespace) -> None:
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        steps, threads = arguments.steps + WARM_UP, arguments.threads
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--side", json.dumps([str(tree), *case]), str(steps), str(threads)],
            cwd=tree / "bundles" / case[0],
            env=os.environ | {"PYTHONPATH": str(tree)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )

    def step(self) -> float:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write("step\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the process ended; what it said is printed below
        for line in self.process.stdout:
            if line.startswith("seconds "):
                return float(line.split()[1])
        self.log.seek(0)
        raise SystemExit(f"{self.process.args}:\n{self.log.read()[-3000:]}")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()


def _work(tree: str, bundle: str, files: list[str], override: dict[str, Any], steps: int, threads: int) -> None:
    """One side: its revision's own `common`, configs and MONAI's own workflow."""
    import torch
    from ignite.engine import Events
    from monai.bundle import ConfigWorkflow

    torch.set_num_threads(threads)
    configs = Path(tree, "bundles", bundle, "configs")
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
        trainer = workflow.parser.get_parsed_content("train#trainer")
        clock = time.process_time if threads == 1 else time.perf_counter
        started = [0.0]

        @trainer.on(Events.ITERATION_STARTED)
        def wait(_) -> None:
            sys.stdin.readline()
            started[0] = clock()

        @trainer.on(Events.ITERATION_COMPLETED)
        def tell(_) -> None:
            print("seconds", clock() - started[0], flush=True)

        trainer.run()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        _work(*json.loads(sys.argv[2]), *map(int, sys.argv[3:]))
    else:
        main()
