"""Until a run of a bundle could take its first step, against MONAI's own import: CPU time and the clock's.

The baseline is ``import monai`` in a process. The other side is ``python -m monai.bundle run`` of `ssl3d`'s fine-tuning
on the sample, whose `run` builds the trainer with all that it needs (network, data sets, handlers) and does not call
it. No volume is read (`cache` is `none`), and the sample is made before. So what goes beyond the import is what the
collection and its configs add. Each side is a process, in turns, after one of each that is not counted. CPU time is
that in user mode.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from timing import Row

from common.data import make_sample

ROOT = Path(__file__).resolve().parents[1]
FILES = ["configs/train.json", "configs/datasets/sample.json"]
END = "__import__('os')._exit(0)"  # at once: what a process does at its end is no part of its start
IMPORT = [sys.executable, "-c", f"import monai; {END}"]
RUN = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(FILES)]
RUN += ["--run", str(["$@train#trainer", f"${END}"])]


def rows(quick: bool, device: torch.device) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        sample = make_sample(f"{folder}/sample", 3, 0, spacing=4.0, progress=False) if quick else make_sample()
        ids = {"dataset_dir": sample, "output_dir": f"{folder}/run", "cache": "none", "device": str(device)}
        run = RUN + [word for name, value in ids.items() for word in (f"--{name}", value)]
        times: tuple[list[tuple[float, float]], ...] = ([], [])
        for repeat in range(2 if quick else 8):
            for command, taken in zip((IMPORT, run), times, strict=True):
                seconds = _timed(command)
                if repeat:
                    taken.append(seconds)
    medians = [[statistics.median(column) for column in zip(*taken, strict=True)] for taken in times]
    name = "start of a run of ssl3d (baseline: import monai)"
    return [
        Row(f"{name}, {text}", *pair) for text, pair in zip(("CPU", "clock"), zip(*medians, strict=True), strict=True)
    ]


def _timed(command: list[str]) -> tuple[float, float]:
    """Seconds of CPU time in user mode, and of the clock, that a command takes in the bundle's folder."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "PYTHONDONTWRITEBYTECODE": "",  # a user's second run finds the bytecode of the first
    }
    start = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, cwd=ROOT / "bundles/ssl3d", env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        taken = time.perf_counter() - start
        if process.returncode:
            output.seek(0)
            raise RuntimeError(f"{' '.join(command)} failed: {output.read()[-2000:].decode(errors='replace')}")
    return usage.ru_utime, taken
