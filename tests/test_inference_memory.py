"""The memory that inference takes at its peak, as a multiple of the scan in float32, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CHILD = """
import os, sys, threading, time
import nibabel as nib, numpy as np, torch
from monai.data import MetaTensor
from monai.transforms import Compose, Orientationd
from common import gathered
from common.inferers import SlidingWindowInferer
from common.transforms import LoadVolumed, ScaleForegroundPercentilesd, ScanLabelsd, Spacingd
torch.set_num_threads(1)
gathered.FILE_BYTES = 2**22
folder, side, voxel = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
image = np.random.default_rng(0).integers(0, 900, (side, side, side), dtype=np.int16)
nib.save(nib.Nifti1Image(image, np.diag([voxel] * 3 + [1.0])), folder + "/scan.nii")
volume = 4 * image.size
del image
preprocessing = Compose([
    LoadVolumed("image", ensure_channel_first=True),
    Orientationd("image", axcodes="PIR", labels=None),
    Spacingd("image", [1.0] * 3, mode="bilinear"),
    ScaleForegroundPercentilesd("image", 1, 99),
])
inferer = SlidingWindowInferer([32] * 3, 2, overlap=0.1)
net = torch.nn.Conv3d(1, 24, 1)
label = ScanLabelsd("pred", preprocessing)
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
def watch():
    global peak
    while True:
        peak = max(peak, resident())
        time.sleep(0.002)
before = peak = resident()
threading.Thread(target=watch, daemon=True).start()
with torch.no_grad():
    item = preprocessing({"image": folder + "/scan.nii"})
    batch = item["image"][None]
    item["pred"] = inferer(batch, net)[0]
    labels = label(item)["pred"]
assert labels.shape == (1, side, side, side)
print(volume, peak - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="Linux tells what is resident")
def test_inference_takes_little_more_than_the_scan(tmp_path):
    """Scores of 24 classes alone take 200 MB here, and took several times that: with their softmax and resampled."""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path), "160", "0.8"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    volume, peak = map(int, child.stdout.split())
    assert peak < 3 * volume + 250e6  # what libraries, windows and slabs take does not grow with the scan
