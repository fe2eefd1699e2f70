"""A pre-training step of Med3D: each setting of the bundle against the plain one.

The settings are memory format (``channels_last_3d`` against row-major), one upsampled branch against all eight, and
checkpointing, which saves memory and takes time. Checkpointing has a second row: the memory that the step keeps for the
gradient, in GB instead of seconds. The last row is a fine-tuning step of the small net, with two decoders.
"""

from __future__ import annotations

import copy
import functools

import torch
from timing import Row, assert_close, compare
from torch import nn

from common.losses import DiceCrossEntropy, VoxelCrossEntropy
from common.networks import DilatedResNet, LungDecoder, Med3DNet, MultiBranchNet, to_channels_last

CLASSES = (4, 3, 3, 3, 2, 3, 3, 2)  # of 3DSeg-8
LOSS = VoxelCrossEntropy()


def rows(quick: bool, device: torch.device) -> list[Row]:
    cases = [(10, 4, 24, 1)] if quick else [(10, 64, 64, 1), (50, 32, 48, 1)]
    return [*(row for case in cases for row in _rows(*case, quick, device)), _decoder(quick, device)]


def _decoder(quick: bool, device: torch.device) -> Row:
    """Fine-tuning of the small net: with a decoder of its own width and with that of the full net, another function."""
    width, shape = (4, (1, 1, 16, 24, 16)) if quick else (16, (4, 1, 40, 56, 40))
    image = torch.rand(shape, device=device)
    label = torch.randint(3, shape, device=device)
    wide, ours = (
        to_channels_last(
            Med3DNet(functools.partial(LungDecoder, num_classes=3, features=features), width=width), device
        )
        for features in (16 * width, 4 * width)
    )
    what = f"{shape[0]} x {'x'.join(map(str, shape[2:]))}"
    return compare(
        f"fine-tuning to masks, ResNet-10 of width {width}, {what}, decoder {4 * width} (baseline: {16 * width})",
        lambda: DiceCrossEntropy()(wide(image), label).backward(),
        lambda: DiceCrossEntropy()(ours(image), label).backward(),
        1 if quick else 3,
    )


def _rows(depth: int, width: int, size: int, batch: int, quick: bool, device: torch.device) -> list[Row]:
    what = f"ResNet-{depth} of width {width}, {batch} x {size}^3"
    repeats = 1 if quick else 3
    image = torch.rand(batch, 1, size, size, size, device=device)
    label = torch.randint(2, (batch, 1, size, size, size), device=device)

    def build(**arguments) -> MultiBranchNet:
        torch.manual_seed(0)
        return MultiBranchNet(DilatedResNet(depth, width=width, **arguments), CLASSES).to(device).train()

    plain, ours, saving = (
        build(),
        to_channels_last(build(), device),
        to_channels_last(build(checkpointing=True), device),
    )
    with torch.no_grad():
        expected, got = (copy.deepcopy(net).eval()(image, branch=2) for net in (plain, ours))
    assert_close(expected, got, 1e-3)

    one_branch = functools.partial(_step, ours, image, label)
    kept = [_kept(net, image, label) for net in (ours, saving)]
    return [
        compare(
            f"Med3D step, {what}, channels_last_3d (baseline: row-major)",
            functools.partial(_step, plain, image, label),
            one_branch,
            repeats,
        ),
        compare(
            f"Med3D step, {what}, the batch's branch (baseline: all 8 upsampled)",
            functools.partial(_step_of_all, ours, image, label),
            one_branch,
            repeats,
        ),
        compare(
            f"Med3D step, {what}, checkpointing (baseline: without)",
            one_branch,
            functools.partial(_step, saving, image, label),
            repeats,
        ),
        Row(f"Med3D step, {what}, checkpointing: kept for the gradient (baseline: without)", *kept, unit="GB"),
    ]


def _step(net: nn.Module, image: torch.Tensor, label: torch.Tensor) -> None:
    net.zero_grad(set_to_none=True)
    LOSS(net(image, branch=2), label).backward()


def _step_of_all(net: MultiBranchNet, image: torch.Tensor, label: torch.Tensor) -> None:
    """Run every branch; losses of other domains' branches count as zero."""
    net.zero_grad(set_to_none=True)
    maps = net.encoder(image)
    logits = [net.decoder(maps, image.shape[2:], branch) for branch in range(len(CLASSES))]
    sum(LOSS(x, label) * (branch == 2) for branch, x in enumerate(logits)).backward()  # type: ignore[union-attr]


def _kept(net: nn.Module, image: torch.Tensor, label: torch.Tensor) -> float:
    """Measure the GB of activations that autograd keeps between forward and backward pass; count each storage once."""
    own = {parameter.untyped_storage().data_ptr() for parameter in net.parameters()}
    sizes: dict[int, int] = {}
    held: list[torch.Tensor] = []  # so that no place is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        LOSS(net(image, branch=2), label)
    return sum(sizes.values()) / 1e9
