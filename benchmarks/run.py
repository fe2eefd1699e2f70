"""Run the benchmarks and write the table.

python benchmarks/run.py                       all of the list, each into its section of benchmarks/RESULTS.md
python benchmarks/run.py --only mae_step       one of them
python benchmarks/run.py --quick               tiny sizes, only to see that they run, on the screen
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import os
import platform
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # the code beside this folder, not some other `common`

import monai  # noqa: E402
import torch  # noqa: E402
from timing import Row  # noqa: E402

# `pretext_step` needs a revision, and `gpu` has tables of its own: they run by themselves.
NAMES = (
    "contrastive_loss",
    "cutout",
    "dice_cross_entropy",
    "fine_tuning_step",
    "generator_step",
    "inference_memory",
    "instance_norm",
    "mae_step",
    "med3d_step",
    "multi_view",
    "nnformer_step",
    "resize",
    "segmentation_images",
    "slice_inference",
    "start_of_a_run",
    "token_contrast",
    "training_step",
    "volume_cache",
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Side-by-side timings; each ratio is taken within one run.")
    parser.add_argument("--only", choices=NAMES, help="run one benchmark and print its rows")
    parser.add_argument("--quick", action="store_true", help="tiny sizes; the ratios mean nothing")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: torch's own choice)")
    parser.add_argument("--device", default="cpu", help="device to measure on, such as cuda (default: cpu)")
    parser.add_argument("--output", type=Path, help="file for the tables (default: RESULTS.md, at full size)")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    output = arguments.output or (None if arguments.quick else HERE / "RESULTS.md")
    for name in [arguments.only] if arguments.only else NAMES:
        print(f"{name} ...", file=sys.stderr, flush=True)
        torch.manual_seed(0)
        rows = importlib.import_module(name).rows(arguments.quick, torch.device(arguments.device))
        text = table(rows, arguments.device)
        print(f"{name}: {text}", flush=True)
        if output:
            write_section(output, name, text)


def table(rows: list[Row], device: str) -> str:
    lines = [
        f"{datetime.date.today().isoformat()}, {machine(device)}.",
        "",
        "| benchmark | baseline | ours | ratio |",
        "| --- | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row.name} | {row.baseline:.4g} {row.unit} | {row.ours:.4g} {row.unit} | {row.ratio:.3g} |" for row in rows
    ]
    return "\n".join(lines) + "\n"


def write_section(path: Path, name: str, text: str) -> None:
    """Replace a benchmark's section of the page; leave the others as they are."""
    old = path.read_text(encoding="utf-8") if path.is_file() else ""
    sections = dict(re.findall(r"^## (\w+)\n\n(.*?)(?=\n## |\Z)", old, re.DOTALL | re.MULTILINE)) | {name: text}
    parts = [HEAD] + [f"## {one}\n\n{sections[one].rstrip()}\n" for one in sorted(sections)]
    temporary = path.with_name(path.name + ".part")
    temporary.write_text("\n".join(parts), encoding="utf-8")
    os.replace(temporary, path)


HEAD = """# Benchmarks

`python benchmarks/run.py` writes one section per benchmark of its list. `pretext_step` is not in the list, because it
needs an earlier revision to compare with: `python benchmarks/pretext_step.py REVISION` writes its section. Text below a
table was added by hand, and another run replaces the section with it. Times are medians, unless a section says
otherwise; both sides of a row were timed in turns, in one run. A ratio above 1 means that ours takes less; that of
`generator_step` is a share.

Without a section: `volume_cache`, which was not run at full size (400 volumes of 192^3 need 33 GB on a disk), so how
long the trainer waits for a cache on a disk is not known; and `gpu.py`, whose tables are of a GPU, which was not run.

Each section is of the code of its date. After those of 25 and 26 November 2026, intensities, padding and schedules were
corrected; they have yet to be measured again. Layer norms in bfloat16 on a CPU changed after all of these (gradients).

The target for synthetic images was a trainer that is busy at least 95 % of the time. The generator takes 16.6 % of a
step with the small net of `ssl3d` for a CPU, which misses it, and 2.4 % with its default net, ResEnc-L
([generator_step](#generator_step)).
"""


def machine(device: str) -> str:
    """Describe the machine and the versions, as part of a sentence."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        processor = models[0] if models else processor
    where = f"{processor}, {torch.get_num_threads()} thread(s)"
    if torch.device(device).type == "cuda":
        where = f"{torch.cuda.get_device_name(device)} ({where})"
    return f"{where}, Python {platform.python_version()}, torch {torch.__version__}, MONAI {monai.__version__}"


if __name__ == "__main__":
    main()
