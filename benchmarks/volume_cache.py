"""Training from volumes kept in memory (baseline) or in files: memory, and the time that the trainer waits.

Each side trains a small network for two epochs in a separate process with workers, on crops of volumes that this script
makes. Memory is the peak of the process and its workers together (proportional set size, including pages of mapped
files). Batches come from `common.data.DataLoader`, as in a run of a bundle: its workers start in the first epoch, so
the second has no start. The trainer counts as busy while it does not wait for a batch in the second epoch.

python benchmarks/volume_cache.py --keep disk                 400 volumes of 192^3: 8 GB of scans, 25 GB of cache files
python benchmarks/volume_cache.py --keep memory --volumes 40  2.5 GB in memory

Without `--keep` both sides run with the same volumes, and 400 of them take 25 GB in memory. On a machine that has less,
measure the sides in two calls, as above. The time of an epoch is then to be divided by the number of volumes; the share
of time busy can be compared as it is, and the peak memory belongs to the number in its line.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import torch  # noqa: E402
from timing import Row  # noqa: E402

from common.peak_memory import PeakMemory  # noqa: E402

CROP = 96


def rows(quick: bool, device: torch.device) -> list[Row]:
    volumes, size, crop = (2, 32, 16) if quick else (16, 192, CROP)
    found = measure(volumes, size, crop, 1 if quick else 2, str(device), ("memory", "disk"))
    name = f"cache of {volumes} volumes of {size}^3 (baseline: memory)"
    texts = {"start": ("s", "start"), "epoch": ("s", "second epoch"), "gb": ("GB", "peak memory")}
    made = [Row(f"{name}, {text}", found["memory"][k], found["disk"][k], unit) for k, (unit, text) in texts.items()]
    busy = [100 * found[side]["busy"] for side in ("memory", "disk")]
    return [*made, Row(f"{name}, trainer busy in the second epoch", *busy, unit="%")]


def measure(
    volumes: int, size: int, crop: int, workers: int, device: str, sides: tuple[str, ...], folder: str | None = None
) -> dict[str, dict[str, float]]:
    """Measure each side: seconds until the first batch and of the second epoch, peak in GB, share of time busy."""
    found = {}
    with tempfile.TemporaryDirectory(dir=folder) as made:
        make_volumes(Path(made), volumes, size)
        for side in sides:
            values = [made, volumes, side, crop, workers, device, torch.get_num_threads()]
            command = [sys.executable, __file__, "--train", *map(str, values)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            with PeakMemory(process.pid, pause=0.2) as peak:
                text = process.communicate()[0] or ""
            if process.returncode:
                raise RuntimeError(f"the side {side} failed.")
            start, epoch, busy = map(float, text.split()[-3:])
            found[side] = {"start": start, "epoch": epoch, "busy": busy, "gb": peak.bytes / 1e9}
    return found


def make_volumes(folder: Path, count: int, size: int) -> None:
    """Write int16 scans and uint8 masks. Each is a rolled copy of the first."""
    import nibabel as nib
    import numpy as np

    draw = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, size)] * 3, indexing="ij"))
    radius = np.sqrt((grid**2).sum(0))
    mask = np.digitize(-radius, [-0.8, -0.5, -0.2]).astype(np.uint8)
    image = (mask * 200 + draw.normal(100, 30, mask.shape)).astype(np.int16)
    for number in range(count):
        for name, voxels in (("image", image), ("label", mask)):
            rolled = np.roll(voxels, number, axis=number % 3)
            nib.save(nib.Nifti1Image(rolled, np.eye(4)), folder / f"{name}{number}.nii")


def train(folder: str, volumes: int, cache: str, crop: int, workers: int, device: str, threads: int) -> None:
    from monai.networks.nets import SegResNet
    from monai.transforms import Compose, DeleteItemsd, NormalizeIntensityd, Orientationd, RandCropByPosNegLabeld

    from common.data import CachedDataset, DataLoader
    from common.transforms import LabelIndicesd, LoadVolumed

    torch.set_num_threads(threads)
    both = ["image", "label"]
    indices = ["label_fg_indices", "label_bg_indices"]
    transform = Compose(
        [
            LoadVolumed(both, ensure_channel_first=True),
            Orientationd(both, axcodes="RAS", labels=None),
            NormalizeIntensityd("image"),
            LabelIndicesd("label"),
            RandCropByPosNegLabeld(both, "label", [crop] * 3, 1, 1, 1, None, 0.0, *indices),
            DeleteItemsd(indices),
        ]
    )
    items = [{name: f"{folder}/{name}{number}.nii" for name in both} for number in range(volumes)]
    began = time.perf_counter()
    data = CachedDataset(items, transform, cache, cache_dir=f"{folder}/cache", num_workers=workers)
    start = time.perf_counter() - began
    loader = DataLoader(data, batch_size=2, shuffle=True, num_workers=workers)
    network = SegResNet(init_filters=8, in_channels=1, out_channels=4).to(device)
    optimizer = torch.optim.SGD(network.parameters(), 0.01)
    for _ in range(2):
        waited, began = 0.0, time.perf_counter()
        batches = iter(loader)
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            waited += time.perf_counter() - asked
            if batch is None:
                break
            image, label = (batch[name].as_tensor().to(device) for name in both)
            loss = torch.nn.functional.cross_entropy(network(image), label[:, 0].long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
        epoch = time.perf_counter() - began
    print(start, epoch, 1 - waited / epoch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--volumes", type=int, default=400)
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--crop", type=int, default=CROP)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--keep", nargs="+", choices=("memory", "disk", "none"), default=["disk", "memory"])
    parser.add_argument("--folder", help="where the volumes are made (default: the system's temporary folder)")
    parser.add_argument("--train", nargs=7, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        folder, volumes, cache, crop, workers, device, threads = options.train
        train(folder, int(volumes), cache, int(crop), int(workers), device, int(threads))
        return
    if options.threads:
        torch.set_num_threads(options.threads)
    found = measure(
        options.volumes, options.size, options.crop, options.workers, options.device, options.keep, options.folder
    )
    for side, values in found.items():
        print(
            f"{side}: {options.volumes} volumes of {options.size}^3, start {values['start']:.1f} s, second epoch "
            f"{values['epoch']:.1f} s, busy {100 * values['busy']:.1f} %, peak memory {values['gb']:.2f} GB"
        )


if __name__ == "__main__":
    main()
