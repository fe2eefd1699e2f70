"""Train a stock MONAI DynUNet on the scans and split of a run of ``common.auto``, for the same number of minutes.

    python experiments/auto_stock.py runs/heart --minutes 20 --rate 0.001 --output stock/heart

It reads lists, labels and voxel size from ``datalist.json`` and ``plan.json`` of the run's folder. The rest follows
MONAI's tutorials: ``DynUNet`` with 32 to 320 channels, float32, ``DiceCELoss``, AdamW with a cosine schedule, crops of
96 voxels (or the image), flips, intensity changes, a sliding window. Only the learning rate can be chosen; compare
``validation`` in ``stock.json`` between rates. Scoring does not count towards the minutes. Masks must be numbered 1, 2,
... without a gap.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from monai.data import CacheDataset, DataLoader, decollate_batch
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.metrics import DiceMetric
from monai.networks.nets import DynUNet
from monai.networks.utils import one_hot
from monai.transforms import (
    AsDiscreted,
    Compose,
    CropForegroundd,
    Invertd,
    LoadImaged,
    MapLabelValued,
    NormalizeIntensityd,
    Orientationd,
    RandCropByPosNegLabeld,
    RandFlipd,
    RandScaleIntensityd,
    RandShiftIntensityd,
    SaveImaged,
    Spacingd,
    SpatialPadd,
)
from monai.utils import set_determinism

from common.auto.plan import crop_and_network
from common.files import common_folder
from common.json_files import read_json, write_json
from common.score import score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="output folder of common.auto")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    set_determinism(options.seed)
    plan, lists = read_json(options.run / "plan.json"), read_json(options.run / "datalist.json")
    classes, spacing = plan["num_classes"], plan["spacing"]
    labels = {label: int(index) for index, group in plan["label_map"].items() for label in group}
    both, modes = ["image", "label"], ["bilinear", "nearest"]

    def fixed(keys):
        chosen = [LoadImaged(keys, ensure_channel_first=True), Orientationd(keys, "RAS", labels=None)]
        chosen.append(Spacingd(keys, spacing, mode=modes[: len(keys)]))
        if "label" in keys:
            chosen.append(MapLabelValued("label", list(labels), list(labels.values())))
        chosen += [CropForegroundd(keys, "image", allow_smaller=True), NormalizeIntensityd("image", nonzero=True)]
        return chosen

    first = Compose(fixed(both))(lists["training"][0])["image"]
    size = [min(96, n) for n in first.shape[1:]]
    crop, strides, kernels = crop_and_network(size, spacing, 96**3, 5)
    augmentation = [
        SpatialPadd(both, crop),
        RandCropByPosNegLabeld(both, "label", crop, pos=1, neg=1, num_samples=1),
        *(RandFlipd(both, prob=0.5, spatial_axis=axis) for axis in range(3)),
        RandScaleIntensityd("image", 0.1, prob=0.5),
        RandShiftIntensityd("image", 0.1, prob=0.5),
    ]
    began = time.time()
    training = CacheDataset(lists["training"], Compose(fixed(both) + augmentation), progress=False)
    loader = DataLoader(training, batch_size=2, shuffle=True, drop_last=len(training) > 1)
    net = DynUNet(
        3, plan["in_channels"], classes, kernels, strides, strides[1:], filters=[32, 64, 128, 256, 320][: len(strides)]
    )
    loss_of = DiceCELoss(to_onehot_y=True, softmax=True)
    optimizer = torch.optim.AdamW(net.parameters(), options.rate)
    seconds, steps = options.minutes * 60, 0
    while (gone := time.time() - began) < seconds:
        for batch in loader:
            for group in optimizer.param_groups:
                group["lr"] = options.rate * 0.5 * (1 + np.cos(np.pi * min(1.0, (time.time() - began) / seconds)))
            optimizer.zero_grad()
            loss = loss_of(net(batch["image"]), batch["label"])
            loss.backward()
            optimizer.step()
            steps += 1
            if (gone := time.time() - began) >= seconds:
                break
        print(f"{gone:.0f} s, {steps} steps, loss {float(loss.detach()):.3f}", flush=True)
    net.eval()

    def infer(image):
        with torch.no_grad():
            return sliding_window_inference(image, crop, 2, net, overlap=0.5, mode="gaussian")

    dice = DiceMetric(include_background=False)
    for item in CacheDataset(lists["validation"], Compose(fixed(both)), progress=False, cache_rate=0.0):
        found = infer(item["image"][None]).argmax(1, keepdim=True)
        dice(one_hot(found, classes), one_hot(item["label"][None], classes))
    folder, root = options.output / "test", common_folder([item["image"] for item in lists["test"]])
    preprocessing = Compose(fixed(["image"]))
    saving = Compose(
        [
            Invertd("pred", preprocessing, "image", nearest_interp=False, to_tensor=True),
            AsDiscreted("pred", argmax=True),
            SaveImaged(
                "pred",
                output_dir=folder,
                output_postfix="",
                separate_folder=False,
                data_root_dir=root,
                print_log=False,
                resample=False,
            ),
        ]
    )
    loader = DataLoader(CacheDataset(lists["test"], preprocessing, progress=False, cache_rate=0.0), batch_size=1)
    for batch in loader:
        batch["pred"] = infer(batch["image"])
        for one in decollate_batch(batch):
            saving(one)
    write_json(
        options.output / "stock.json",
        {"steps": steps, "rate": options.rate, "minutes": options.minutes, "validation": float(dice.aggregate())},
    )
    print(json.dumps(read_json(options.output / "stock.json")))
    truth = options.output / "truth"
    for item in lists["test"]:
        link = truth / Path(item["image"]).relative_to(root)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(item["label"])
    score(str(truth), str(folder), str(options.output / "scores.csv"))


if __name__ == "__main__":
    main()
