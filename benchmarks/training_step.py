"""Training steps on a CPU, as the bundles run them, against MONAI's network as it comes or an earlier state in float32.

The bundles compute in bfloat16 if the CPU has instructions for it, else in float32; the name of each row says which.
The baseline is MONAI's network with its defaults for fine-tuning (our own row-major one for dilated ResNets), MONAI's
ViT over every token for the MAE, and for the other pretexts the earlier state of the bundles (channels_last_3d,
float32). Both sides have the same weights. With ``--threads 1`` times are CPU times (``time.process_time``), with more
threads those of the clock: the least of five steps, taken in turns because the machine may have other work. Each side
has its own process, since the memory allocator's settings hold for a process.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
from timing import Row, Side

CASES = (
    ("fine-tuning, UNETR 8/192, 1 x 80x96x80", "unetr", "stock"),
    ("fine-tuning, Swin UNETR 24, 1 x 64^3", "swin_unetr", "stock"),
    ("fine-tuning, dilated ResNet-10, 1 x 64^3", "resnet", "stock"),
    ("fine-tuning, DynUNet 32, 1 x 64^3", "dynunet", "stock"),
    ("fine-tuning, nnFormer 48, 1 x 64^3", "nnformer", "float32"),
    ("MAE, ViT 768, 1 x 96^3, mask ratio 0.75", "mae", "stock"),
    ("MAE, ViT 768, 1 x 96^3, mask ratio 0.75", "mae", "float32"),
    ("RCR, Swin UNETR 24, 1 x 64^3", "rcr", "float32"),
    ("token contrast, nnFormer 48, 1 x 64^3", "token_contrast", "float32"),
)
BASELINES = {"stock": "as it comes, float32", "float32": "float32, channels_last_3d"}
QUICK = ("unetr", "mae")
REPEATS = 5


def rows(quick: bool, device: torch.device) -> list[Row]:
    if device.type != "cpu":
        raise SystemExit("training_step measures CPUs; benchmarks/gpu.py is for GPUs.")
    from common.precision import bfloat16_pays

    ours = "bfloat16" if bfloat16_pays("cpu") else "float32"  # the default of the bundles' `amp`
    return [_row(*case, ours, quick) for case in CASES if not quick or case[1] in QUICK]


def _row(name: str, kind: str, baseline: str, ours: str, quick: bool) -> Row:
    sides = [Side(_work, kind, way, quick) for way in (baseline, "ours")]
    try:
        taken: tuple[list[float], list[float]] = ([], [])
        for repeat in range(2 if quick else REPEATS + 1):
            for side, times in zip(sides, taken, strict=True):
                seconds = side.ask("step")
                if repeat:
                    times.append(seconds)
        return Row(f"{name}, in {ours} (baseline: {BASELINES[baseline]})", *(min(times) for times in taken))
    finally:
        for side in sides:
            side.stop()


def _work(pipe: Connection, threads: int, kind: str, way: str, quick: bool) -> None:
    from common.allocator import keep_freed_memory
    from common.networks import place, to_channels_last
    from common.precision import bfloat16_pays

    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    torch.manual_seed(0)
    network, image, loss = MAKERS[kind](way == "stock", quick)
    if way != "stock":
        keep_freed_memory(True)
        amp = bfloat16_pays("cpu")
        network = place(network, "cpu", amp=amp) if way == "ours" else to_channels_last(network, "cpu")
    weights = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-4, fused=None if way == "stock" else True)
    while pipe.recv() != "stop":
        start = clock()
        optimizer.zero_grad()
        value = loss(network(image))
        value.backward()
        optimizer.step()
        taken = clock() - start
        if not math.isfinite(value.item()):
            raise ValueError(f"the loss of {kind}, {way}, is not finite.")
        pipe.send(taken)


Made = tuple[torch.nn.Module, torch.Tensor, Callable[[Any], torch.Tensor]]


def _segmentation(network: torch.nn.Module, *size: int) -> Made:
    from common.losses import DiceCrossEntropy

    image, label = torch.rand(1, 1, *size), torch.randint(5, (1, 1, *size))
    loss = DiceCrossEntropy()
    return network, image, lambda logits: loss(logits, label)


def _unetr(stock: bool, quick: bool) -> Made:
    from monai.networks import nets

    from common.networks import UNETR

    size = (32, 32, 32) if quick else (80, 96, 80)
    arguments: dict[str, Any] = {"img_size": size, "feature_size": 8, "hidden_size": 192, "mlp_dim": 768}
    network = nets.UNETR(1, 5, **arguments)
    if not stock:
        baseline, network = network, UNETR(1, 5, **arguments, skip_blocks=(4, 7, 10))
        network.load_state_dict(baseline.state_dict())
    return _segmentation(network, *size)


def _swin_unetr(stock: bool, quick: bool) -> Made:
    from monai.networks.nets import SwinUNETR

    return _segmentation(SwinUNETR(1, 5, feature_size=24), 64, 64, 64)


def _resnet(stock: bool, quick: bool) -> Made:
    from common.networks import LungDecoder, Med3DNet

    return _segmentation(Med3DNet(functools.partial(LungDecoder, num_classes=5)), 64, 64, 64)


def _dynunet(stock: bool, quick: bool) -> Made:
    from monai.networks.nets import DynUNet

    strides = [1, 2, 2, 2]
    net = DynUNet(3, 1, 5, [3] * 4, strides, strides[1:], filters=[32, 64, 128, 256], norm_name="instance")
    return _segmentation(net, 64, 64, 64)


def _nnformer(stock: bool, quick: bool) -> Made:
    from common.networks import NNFormer

    net = NNFormer(1, 5, (64,) * 3, 48, 4, (2, 2, 2), (3, 6, 12), drop_path_rate=0.0, deep_supervision=False)
    return _segmentation(net, 64, 64, 64)


def _mae(stock: bool, quick: bool) -> Made:
    from mae_step import EveryTokenMAE
    from monai.networks import nets

    from common.losses import MaskedReconstructionLoss
    from common.networks import UNETR, ViTEncoder
    from common.pretexts import MAE

    size = 32 if quick else 96
    sizes = {"hidden_size": 48, "mlp_dim": 96} if quick else {"hidden_size": 768, "mlp_dim": 3072}
    arguments: dict[str, Any] = {"img_size": size, **sizes}
    network = nets.UNETR(1, 5, **arguments) if stock else UNETR(1, 5, **arguments)
    image = torch.rand(1, 1, size, size, size)
    pretext = (EveryTokenMAE if stock else MAE)(ViTEncoder(network.vit), [size] * 3, mask_ratio=0.75)
    loss = MaskedReconstructionLoss()
    return pretext, image, lambda prediction: loss(prediction, image)


def _rcr(stock: bool, quick: bool) -> Made:
    from monai.networks.nets import SwinUNETR

    from common.losses import RCRLoss
    from common.networks import SwinEncoder
    from common.pretexts import RCR

    loss = RCRLoss()
    return RCR(SwinEncoder(SwinUNETR(1, 5, feature_size=24).swinViT)), torch.rand(1, 1, 64, 64, 64), loss


def _token_contrast(stock: bool, quick: bool) -> Made:
    from common.losses import TokenContrastiveLoss
    from common.networks import NNFormer
    from common.pretexts import TokenContrast
    from common.transforms import TokenViews

    net = NNFormer(1, 2, (64,) * 3, 48, 4, (2, 2, 2), (3, 6, 12), drop_path_rate=0.0)
    pretext = TokenContrast(net.model_down, TokenViews(axes=None, mask_ratio=0))
    return pretext, torch.rand(1, 1, 64, 64, 64), TokenContrastiveLoss()


MAKERS = {
    "unetr": _unetr,
    "swin_unetr": _swin_unetr,
    "resnet": _resnet,
    "dynunet": _dynunet,
    "nnformer": _nnformer,
    "mae": _mae,
    "rcr": _rcr,
    "token_contrast": _token_contrast,
}
