"""The whole way of one bundle on the embedded sample: pre-train, fine-tune, evaluate, infer and draw. `make demo`.

Every step is MONAI's own command, printed before it runs, so that each can be repeated by hand. The outcome is stated
as it comes out; a sample of synthetic brains and minutes on a CPU show that the parts work, not what a method is worth.
"""

from __future__ import annotations

import argparse
import csv
import os
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "bundles" / "pretrain_once" / "configs"
ARMS = ("scratch", "pre-trained")
COLOURS = ["#00000000", "#3b7dd8", "#2ca02c", "#f2b134", "#9aa0a6"]
STRUCTURES = ("cortex", "subcortical grey matter", "white matter", "CSF")


def bundle_run(name: str, *files: str, **overrides: object) -> None:
    """Run one of the bundle's configs on the sample in a child process, as a user would type it."""
    paths = [str((CONFIGS / file).relative_to(ROOT)) for file in (*files, "datasets/sample.json")]
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(paths)]
    command += ["--meta_file", str((CONFIGS / "metadata.json").relative_to(ROOT))]
    command += ["--logging_file", str((ROOT / "demo" / "logging.conf").relative_to(ROOT))]
    for key, value in overrides.items():
        command += [f"--{key}", str(value)]
    print(f"\n== {name}\n{shlex.join(['python', *command[1:]])}\n", flush=True)
    started = time.time()
    # MONAI warns on each run that a config is code; these are the project's own.
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    print(f"   {time.time() - started:.0f} s", flush=True)


def read_dice(run: Path) -> dict[str, list[float]]:
    """Dice per subject and structure (background left out), from the table that evaluation wrote."""
    with (run / "eval" / "val_mean_dice_raw.csv").open() as file:
        rows = list(csv.DictReader(file, skipinitialspace=True))
    return {
        Path(row["filename"]).name.split(".")[0]: [float(v) for k, v in row.items() if k not in ("filename", "mean")]
        for row in rows
    }


def read_curve(run: Path, tag: str, since: float) -> tuple[list[int], list[float]]:
    """Steps and values of a scalar from a run's TensorBoard events that were written after a time."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    points: dict[int, float] = {}
    for file in (run / "tensorboard").glob("events.*"):
        if file.stat().st_mtime < since:
            continue  # of an earlier demo in the same folder
        events = EventAccumulator(str(file))
        events.Reload()
        if tag in events.Tags()["scalars"]:
            points.update((event.step, event.value) for event in events.Scalars(tag))
    return sorted(points), [points[step] for step in sorted(points)]


def summarise(scores: dict[str, dict[str, list[float]]]) -> str:
    """A table and one sentence on the outcome, as Markdown."""
    lines = ["| structure | " + " | ".join(ARMS) + " | difference |", "|---|---|---|---|"]
    for index, structure in enumerate(STRUCTURES):
        means = [statistics.mean(values[index] for values in scores[arm].values()) for arm in ARMS]
        lines.append(f"| {structure} | {means[0]:.3f} | {means[1]:.3f} | {means[1] - means[0]:+.3f} |")
    subjects = sorted(scores[ARMS[0]])
    per_subject = {arm: [statistics.mean(scores[arm][subject]) for subject in subjects] for arm in ARMS}
    means = [statistics.mean(per_subject[arm]) for arm in ARMS]
    lines.append(f"| **mean** | {means[0]:.3f} | {means[1]:.3f} | {means[1] - means[0]:+.3f} |")
    differences = [b - a for a, b in zip(*per_subject.values(), strict=True)]
    better = sum(difference > 0 for difference in differences)
    error = statistics.stdev(differences) / len(differences) ** 0.5
    mean = statistics.mean(differences)
    verdict = (
        "no clear difference" if abs(mean) < 2 * error else "pre-training helped" if mean > 0 else "pre-training hurt"
    )
    lines += [
        "",
        f"Outcome: {verdict} in this run. Mean Dice over {len(subjects)} held-out subjects {means[0]:.3f} from "
        f"scratch, {means[1]:.3f} pre-trained; paired difference {mean:+.3f} (standard error {error:.3f}), better in "
        f"{better} of {len(subjects)}. One seed, synthetic brains: it shows that the parts work, nothing more.",
    ]
    return "\n".join(lines)


def draw(sample: Path, output: Path, scores: dict[str, dict[str, list[float]]], target: Path, since: float) -> None:
    """Figure: image, truth and both predictions of two held-out subjects, and the curves of the runs since a time."""
    subjects = sorted(scores[ARMS[0]])[:2]
    figure, axes = plt.subplots(len(subjects) + 1, 4, figsize=(13, 3.4 * (len(subjects) + 1)), layout="constrained")
    cmap = matplotlib.colors.ListedColormap(COLOURS)
    for row, subject in zip(axes, subjects, strict=False):
        image = nib.load(sample / "t1_brain" / f"{subject}.nii.gz").get_fdata()
        masks = [nib.load(sample / "structures4" / f"{subject}.nii.gz").get_fdata()]
        masks += [
            nib.load(output / arm / "predictions" / "t1_brain" / f"{subject}_seg.nii.gz").get_fdata() for arm in ARMS
        ]
        middle = 9 * image.shape[2] // 20  # above the cerebellum: the slice with most of the deep grey nuclei
        z = middle + int(np.argmax((masks[0] == 2).sum((0, 1))[middle:]))
        titles = [subject, "truth"]
        titles += [f"{arm}, Dice {statistics.mean(scores[arm][subject]):.3f}" for arm in ARMS]
        for axis, mask, title in zip(row, [None, *masks], titles, strict=True):
            axis.imshow(image[:, :, z].T, cmap="gray", origin="lower")
            if mask is not None:
                axis.imshow(
                    mask[:, :, z].T, cmap=cmap, vmin=0, vmax=4, origin="lower", interpolation="nearest", alpha=0.7
                )
            axis.set_title(title, fontsize=10)
            axis.axis("off")
    curves = axes[-1]
    for arm, colour in zip(ARMS, ("#888888", "#d1495b"), strict=True):
        for axis, tag, title in (
            (curves[0], "train_loss", "fine-tuning loss, by step"),
            (curves[1], "val_mean_dice", "validation Dice, by epoch"),
        ):
            axis.plot(*read_curve(output / arm, tag, since), color=colour, label=arm)
            axis.set_title(title, fontsize=10)
    curves[1].legend()
    curves[2].plot(*read_curve(output / "pretraining", "val_loss", since), color="#d1495b")
    curves[2].set_title("pre-training: validation loss, by epoch", fontsize=10)
    positions = np.arange(len(STRUCTURES))
    for shift, arm, colour in zip((-0.2, 0.2), ARMS, ("#888888", "#d1495b"), strict=True):
        means = np.mean(list(scores[arm].values()), axis=0)
        curves[3].bar(positions + shift, means, 0.4, color=colour)
    curves[3].set_xticks(positions, ["cortex", "subcort.", "white m.", "CSF"], fontsize=9)
    curves[3].set_title("test Dice by structure", fontsize=10)
    figure.savefig(target, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "demo", help="folder of the runs and the figure")
    parser.add_argument("--masks", type=int, default=4, help="labelled subjects to fine-tune with, at most 12")
    parser.add_argument("--pretrain_epochs", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=40)
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from common.data import make_sample

    started = time.time()
    print("== the sample: synthetic T1 brains made from the MNI152 maps that nilearn carries", flush=True)
    sample = Path(make_sample())
    print(f"   in {sample}", flush=True)
    output = arguments.output.resolve()
    pretraining = output / "pretraining"
    bundle_run(
        "pre-training: masked autoencoder on 36 brains without labels",
        "pretrain.json",
        output_dir=pretraining,
        max_epochs=arguments.pretrain_epochs,
        batch_size=4,
    )
    scores = {}
    for arm in ARMS:
        run = output / arm
        encoder = {"pretrained_encoder": pretraining / "encoder.safetensors"} if arm == "pre-trained" else {}
        bundle_run(
            f"fine-tuning, {arm}: four structures from {arguments.masks} masks",
            "train.json",
            output_dir=run,
            max_epochs=arguments.epochs,
            val_interval=max(1, arguments.epochs // 10),
            fraction=arguments.masks / 12,
            **encoder,
        )
        bundle_run(f"evaluation, {arm}: 8 held-out brains", "train.json", "evaluate.json", output_dir=run)
        bundle_run(
            f"inference, {arm}: label maps as NIfTI",
            "inference.json",
            output_dir=run / "predictions",
            model_path=run / "model.pt",
        )
        scores[arm] = read_dice(run)
    table = summarise(scores)
    (output / "table.md").write_text(table + "\n")
    draw(sample, output, scores, output / "figure.png", started)
    print(f"\n{table}\n\n{output / 'figure.png'}\n{output / 'table.md'}")
    print(f"label maps: {output}/*/predictions    all in {(time.time() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
