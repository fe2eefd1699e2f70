"""Pictures of a validation volume in TensorBoard: MONAI's handler against ours, in seconds and in bytes.

They show different things. MONAI's handler draws an animation through the first channel of image, label and prediction;
for one-hot masks that is the background. Ours draws a slice of all three, with the classes in colour.
"""

from __future__ import annotations

import tempfile
import types
from pathlib import Path

import torch
from monai.data import MetaTensor
from monai.handlers import TensorBoardImageHandler
from timing import Row, compare

from common.handlers import SegmentationImages


def rows(quick: bool, device: torch.device) -> list[Row]:
    cases = [((24, 24, 24), 3)] if quick else [((160, 192, 160), 5), ((256, 256, 120), 14)]
    return [row for size, classes in cases for row in _rows(size, classes, 1 if quick else 3, device)]


def _rows(size: tuple[int, int, int], classes: int, repeats: int, device: torch.device) -> list[Row]:
    numbers = torch.randint(classes, (1, *size), device=device)
    one_hot = torch.zeros(classes, *size, device=device).scatter_(0, numbers, 1.0)
    item = {"image": torch.rand(1, *size, device=device), "label": one_hot, "pred": one_hot.clone()}
    batch = [item | {"image": MetaTensor(item["image"], affine=torch.eye(4))}]
    engine = types.SimpleNamespace(state=types.SimpleNamespace(batch=batch, output=[item], epoch=1, iteration=1))
    name = f"picture of {' x '.join(map(str, size))} voxels, {classes} classes (baseline: TensorBoardImageHandler)"
    with tempfile.TemporaryDirectory() as theirs, tempfile.TemporaryDirectory() as ours:
        monai = TensorBoardImageHandler(
            log_dir=theirs,
            batch_transform=lambda batch: ([batch[0]["image"]], [batch[0]["label"]]),
            output_transform=lambda output: [output[0]["pred"]],
        )
        own = SegmentationImages(ours, classes)

        def draw():
            own._begin()
            own(engine)

        row = compare(name, lambda: monai(engine), draw, repeats)
        monai._writer.flush()
        written = [sum(file.stat().st_size for file in Path(folder).iterdir()) for folder in (theirs, ours)]
    megabytes = [size / (repeats + 1) / 1e6 for size in written]
    return [row, Row(f"event file of the same, {classes} classes", *megabytes, unit="MB")]
