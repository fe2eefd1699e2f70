"""One mask, a few minutes on a CPU: a net trained from scratch beside one that starts from the included encoder.

`make demo` runs it. The comparison is an ordinary `python -m common.compare`. This script prints its command, runs it
on the embedded sample, and says where the report and the picture are.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "demo", help="folder of the runs and the report")
    parser.add_argument("--steps", type=int, help="optimiser steps of a fine-tuning (default: those of compare.json)")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from common.data import make_sample

    started = time.time()
    print("== the sample: synthetic T1 brains made from the MNI152 maps that nilearn carries", flush=True)
    print(f"   in {make_sample()}", flush=True)
    output = arguments.output.resolve()
    command = [sys.executable, "-m", "common.compare", "--settings", "demo/compare.json", "--output", str(output)]
    command += ["--steps", str(arguments.steps)] if arguments.steps else []
    print("\n== four tissues from one mask (four others choose the checkpoint), three seeds: from scratch, and from")
    print("   synthetic_brain. It learnt from images painted from maps of the same template, so these brains are easy")
    print("   for it; docs/results.md has real scans")
    print(shlex.join(["python", *command[1:]]), flush=True)
    # MONAI warns on each run that a config may run code; these configs are the project's own.
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONWARNINGS": "ignore"}, check=True)
    picture = output / "figure.png"
    shutil.copyfile(output / "figures" / "examples.png", picture)
    print(f"{picture}\nall in {(time.time() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
