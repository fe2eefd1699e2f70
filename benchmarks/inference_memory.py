"""Peak memory of inference on a large CT, against three times the size of the scan in float32.

The scan is int16, 512 x 512 x 600 voxels of 1 mm, with five classes. Each row is a separate process, which measures
itself. The first four rows have one convolution as the network, on the scan's grid or another; memory is counted above
what Python and its libraries take. The rows of bundles run `inference.json` with the small network and the voxel size
of the bundle's `datasets/sample.json`, from the scan to the label map on the disk; memory is counted above that of the
process with the network built.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from timing import Row

SHAPE = (512, 512, 600)
CLASSES = 5
WAYS = {
    "windows": "windows of 96^3 (pretrain_once and others)",
    "spacing": "windows of 96^3, another voxel size (1 mm to 1.25 mm)",
    "slices": "runs of slices (transseg)",
    "resized": "runs of slices, resized to 448 x 448 (transseg)",
}
ROOT = Path(__file__).resolve().parents[1]
BUNDLES = sorted(path.parents[1].name for path in ROOT.glob("bundles/*/configs/inference.json"))
TASKS = {"medical_transformer": ["configs/tasks/structures4.json"]}
"""Files of the task with five classes, where it is not that of the sample."""


def rows(quick: bool, device: torch.device) -> list[Row]:
    if device.type != "cpu":
        raise SystemExit("inference_memory measures CPUs.")
    shape = (48, 48, 40) if quick else SHAPE
    volume = 4 * shape[0] * shape[1] * shape[2] / 1e9
    name = f"inference on {' x '.join(map(str, shape))} voxels of int16, {CLASSES} classes"
    texts = WAYS | {bundle: f"{bundle}, small network, whole run" for bundle in BUNDLES}
    limit = "(limit: 3 volumes)"
    return [Row(f"{name}, {text} {limit}", 3 * volume, peak(way, shape), "GB") for way, text in texts.items()]


def peak(way: str, shape: tuple[int, ...]) -> float:
    """Return the peak in GB, measured in a separate process."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        command = [sys.executable, __file__, way, folder, *map(str, shape)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.split()[-1])


def write_scan(path: str, shape: tuple[int, ...]) -> None:
    """Write noise of int16 as a NIfTI file of 1 mm, drawn slice by slice to keep the peak low."""
    import nibabel as nib
    import numpy as np

    image = nib.Nifti1Image(np.zeros(shape, np.int16), np.eye(4))
    for number in range(shape[2]):
        image.dataobj[..., number] = np.random.default_rng(number).integers(-1000, 1000, shape[:2])
    nib.save(image, path)


def run_bundle(bundle: str, folder: str, shape: tuple[int, ...]) -> float:
    """Label the scan with a bundle's small network, as `python -m monai.bundle run` does, and return the peak in GB."""
    import nibabel as nib
    from monai.bundle import ConfigWorkflow

    torch.set_num_threads(1)
    os.chdir(ROOT / "bundles" / bundle)
    files = ["configs/inference.json", *TASKS.get(bundle, []), "configs/datasets/sample.json"]
    scans, model, output = (f"{folder}/{name}" for name in ("scans", "model.pt", "eval"))
    os.mkdir(scans)
    write_scan(f"{scans}/scan.nii", shape)
    ids = {"dataset_dir": scans, "datalist": scans, "output_dir": output, "model_path": model, "task": "structures4"}
    workflow = ConfigWorkflow(files, workflow_type="inference", logging_file=False, **ids)
    workflow.initialize()
    network = workflow.parser.get_parsed_content("network_def")
    torch.save({"model": network.state_dict()}, model)
    workflow.parser.get_parsed_content("evaluator")
    with Watch() as watch:
        workflow.run()
    workflow.finalize()
    (written,) = Path(output).rglob("*.nii.gz")
    if nib.load(written).shape != shape:
        raise ValueError(f"the label map is {nib.load(written).shape}, not that of the scan.")
    return watch.peak / 1e9


def infer(way: str, folder: str, shape: tuple[int, ...]) -> float:
    from monai.transforms import Compose, Orientationd, Resized

    from common.inferers import SliceWindowInferer, SlidingWindowInferer
    from common.transforms import LoadVolumed, ScaleForegroundPercentilesd, ScanLabelsd, Spacingd

    torch.set_num_threads(1)
    path = f"{folder}/scan.nii"
    write_scan(path, shape)
    change = {
        "spacing": [Spacingd("image", [1.25] * 3, mode="bilinear")],
        "slices": [Resized("image", [*shape[:2], -1], mode="area")],
        "resized": [Resized("image", [448, 448, -1], mode="area")],
    }
    preprocessing = Compose(
        [
            LoadVolumed("image", ensure_channel_first=True),
            Orientationd("image", axcodes="RAS", labels=None),
            *change.get(way, []),
            ScaleForegroundPercentilesd("image", 1, 99),
        ]
    )
    inferer = SliceWindowInferer(1) if way in ("slices", "resized") else SlidingWindowInferer([96] * 3, 2, overlap=0.1)
    network = torch.nn.Conv3d(1, CLASSES, 1)
    with Watch() as watch, torch.no_grad():
        item = preprocessing({"image": path})
        item["pred"] = inferer(item["image"][None], network)[0]
        labels = ScanLabelsd("pred", preprocessing)(item)["pred"]
    if labels.shape != (1, *shape):
        raise ValueError(f"the label map is {tuple(labels.shape)}, not that of the scan.")
    return watch.peak / 1e9


class Watch:
    """Measure the peak memory of this process while the block runs, above the memory before it."""

    def __enter__(self) -> Watch:
        import threading

        from common.peak_memory import own_memory

        self.read, self.ended = own_memory, threading.Event()
        self.before, self.peak = own_memory(), 0
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def watch(self) -> None:
        while not self.ended.wait(0.002):
            self.peak = max(self.peak, self.read() - self.before)

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    way, folder, *sizes = sys.argv[1:]
    print((run_bundle if way in BUNDLES else infer)(way, folder, tuple(map(int, sizes))))
