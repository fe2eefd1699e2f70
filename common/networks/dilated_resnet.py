from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import skip_init
from torch.utils.checkpoint import checkpoint

from .foreign import Kind, Source, State, count
from .norms import make_norm

__all__ = ["BLOCKS", "CHECKPOINTS", "DilatedResNet", "resnet_depth"]

BLOCKS = {
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}
"""Blocks of the four layers, by depth."""

STRIDES = (1, 2, 1, 1)
"""Strides of the four layers; the stem before them has stride 4."""


class DilatedResNet(nn.Module):
    """3-D residual network with output stride 8: the last two layers have dilations instead of strides.

    The backbone of Med3D (Chen et al., arXiv 1904.00625, section 3.1, and the published code, MedicalNet): a 7 x 7 x 7
    convolution of stride 2, pooling of stride 2, and four layers. The second layer has stride 2, the third dilation 2
    and the fourth dilation 4, also in their first convolution. Names in the state dict match the published weights.
    MONAI's ``resnet10`` to ``resnet200`` have tensors of the same names and shapes but compute something else: strides,
    not dilations.

    Args:
        depth: 10, 18, 34, 50, 101, 152 or 200; bottleneck blocks from 50 on.
        in_channels: channels of the image.
        shortcut: used if a block changes the grid or the channels. ``"A"`` takes every second voxel and pads with zero
            channels; ``"B"`` is a strided 1 x 1 x 1 convolution and a norm. The published weights of depths 18 and 34
            use A, the others B. Here A passes the gradient on; the published code and MONAI cut it.
        dilations: of the third and fourth layer.
        width: channels of the stem, 64 in the paper.
        preactivation: put norm and activation before each convolution (He et al., "Identity Mappings in Deep Residual
            Networks"), with one more norm at the end; the paper uses a pre-activation ResNet-200.
        checkpointing: in training, keep only the input of each block and recompute its inside for the gradient. Output,
            gradients and running statistics do not change.
        norm: ``"batch"``, ``"group"`` or ``"frozen"`` (``common.networks.make_norm``). Weights of ``"batch"`` and
            ``"frozen"`` are interchangeable; those of ``"group"`` fit neither.
        output_stride: 8, or 32 for strides instead of dilations in the last two layers, with the same weights and 64
            times fewer cells. The paper's coarse liver net has "32 times downsampling" (section 3.3).

    ``forward(image (B, C, D, H, W))`` returns five maps, finest first: the stem's and those of the four layers, with
    strides 2, 4, 8, 8, 8 (2, 4, 8, 16, 32). A grid always has ``ceil(size / stride)`` cells per axis.

    Raises:
        ValueError: depth, shortcut, norm or output stride is unknown, or there are not two dilations.
    """

    layer_names: ClassVar[tuple[str, ...]] = (r"(?:conv|bn)1\.", r"layer(\d)\.", r"bn_last\.")

    def __init__(
        self,
        depth: int = 10,
        in_channels: int = 1,
        shortcut: str = "B",
        dilations: Sequence[int] = (2, 4),
        width: int = 64,
        preactivation: bool = False,
        checkpointing: bool = False,
        norm: str = "batch",
        output_stride: int = 8,
    ) -> None:
        super().__init__()
        if depth not in BLOCKS:
            raise ValueError(f"A ResNet cannot have the depth {depth}; depths are {', '.join(map(str, BLOCKS))}.")
        if shortcut not in ("A", "B"):
            raise ValueError(f"The shortcut of a ResNet must be 'A' or 'B', not {shortcut!r}.")
        if len(dilations) != 2:
            raise ValueError(f"Give two dilations, for the third and the fourth layer, not {list(dilations)}.")
        if output_stride not in (8, 32):
            raise ValueError(f"The output stride of a ResNet must be 8 or 32, not {output_stride}.")
        if output_stride == 32:
            dilations = (1, 1)
            # So that its files are told from those of stride 8, whose tensors are the same.
            self.register_buffer("output_stride", torch.tensor(32))
        self.norm = norm
        self.depth, self.in_channels, self.width = depth, in_channels, width
        self.shortcut, self.dilations, self.preactivation = shortcut, tuple(dilations), preactivation
        self.checkpointing = checkpointing
        expansion = 4 if depth >= 50 else 1

        self.conv1 = _convolution(in_channels, width, 7, stride=2, padding=3)
        self.bn1 = make_norm(norm, width)
        self.maxpool = nn.MaxPool3d(3, stride=2, padding=1)
        channels, outputs = width, []
        strides = STRIDES if output_stride == 8 else (1, 2, 2, 2)
        for number, (blocks, stride) in enumerate(zip(BLOCKS[depth], strides, strict=True)):
            planes = width * 2**number
            dilation = (1, 1, *self.dilations)[number]
            layer = []
            for block in range(blocks):
                layer.append(
                    _Block(channels, planes, expansion, 1 if block else stride, dilation, shortcut, preactivation, norm)
                )
                channels = planes * expansion
            outputs.append(channels)
            self.add_module(f"layer{number + 1}", nn.Sequential(*layer))
        self.bn_last = make_norm(norm, channels) if preactivation else None
        self.channels = (width, *outputs)
        self.strides = tuple((stride,) * 3 for stride in (2, 4, 8, *((8, 8) if output_stride == 8 else (16, 32))))

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        x = F.relu(self.bn1(self.conv1(image)), inplace=True)
        maps = [x]
        with torch.autocast("cpu", enabled=False):  # which computes it in float32 on CPUs: the same maxima
            x = self.maxpool(x)
        for number in range(1, 5):
            for block in getattr(self, f"layer{number}"):
                x = self._run(block, x)
            maps.append(x)
        if self.bn_last is not None:
            maps[-1] = F.relu(self.bn_last(x))
        return maps

    def _run(self, block: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if not (self.checkpointing and self.training and torch.is_grad_enabled()):
            return block(x)
        return checkpoint(
            block, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _statistics_untouched(block))
        )

    def architecture(self) -> dict:
        """Name and arguments of the network, for the record of an encoder file."""
        return {
            "name": "DilatedResNet",
            "depth": self.depth,
            "in_channels": self.in_channels,
            "shortcut": self.shortcut,
            "dilations": list(self.dilations),
            "width": self.width,
            "preactivation": self.preactivation,
            # Frozen statistics are those of batch norms; files of these never stated a norm.
            **({"norm": "group"} if self.norm == "group" else {}),
        }


class _Block(nn.Module):
    """A basic block (two 3 x 3 x 3 convolutions) or, with an expansion, a bottleneck (1, 3 and 1)."""

    def __init__(
        self,
        inputs: int,
        planes: int,
        expansion: int,
        stride: int,
        dilation: int,
        shortcut: str,
        preactivation: bool,
        norm: str,
    ) -> None:
        super().__init__()
        self.preactivation = preactivation
        outputs = planes * expansion
        if expansion == 1:
            convolutions = [
                _convolution(inputs, planes, 3, stride, padding=dilation, dilation=dilation),
                _convolution(planes, planes, 3, padding=dilation, dilation=dilation),
            ]
        else:
            convolutions = [
                _convolution(inputs, planes, 1),
                _convolution(planes, planes, 3, stride, padding=dilation, dilation=dilation),
                _convolution(planes, outputs, 1),
            ]
        for number, convolution in enumerate(convolutions, start=1):
            normed = convolution.in_channels if preactivation else convolution.out_channels
            self.add_module(f"conv{number}", convolution)
            self.add_module(f"bn{number}", make_norm(norm, normed))
        self.convolutions = len(convolutions)
        self.downsample: Callable[[torch.Tensor], torch.Tensor] | None = None
        if stride != 1 or inputs != outputs:
            if shortcut == "A":
                self.downsample = _PadChannels(outputs, stride)
            else:
                self.downsample = nn.Sequential(
                    _convolution(inputs, outputs, 1, stride=stride), make_norm(norm, outputs)
                )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = x if self.downsample is None else self.downsample(x)
        for number in range(1, self.convolutions + 1):
            convolution, norm = getattr(self, f"conv{number}"), getattr(self, f"bn{number}")
            if self.preactivation:
                x = convolution(F.relu(norm(x), inplace=True))
            else:
                x = norm(convolution(x))
                if number < self.convolutions:
                    x = F.relu(x, inplace=True)
        x = x + residual
        return x if self.preactivation else F.relu(x, inplace=True)


def _convolution(*arguments: int, **more: Any) -> nn.Conv3d:
    """A convolution with He et al.'s initialisation, as in the published code, without torch's own draw first.

    Drawing every weight once, not twice, saves seconds for the deep nets.
    """
    device = torch.get_default_device()
    convolution = skip_init(nn.Conv3d, *arguments, bias=False, device=device, **more)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out")
    return convolution


class _PadChannels(nn.Module):
    """Shortcut A: every ``stride``-th voxel, and zeros for the added channels. It has no parameters."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.channels, self.stride = channels, stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[..., :: self.stride, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0) * 3 + (0, self.channels - x.shape[1]))


@contextmanager
def _statistics_untouched(module: nn.Module) -> Iterator[None]:
    """Keep norms from counting a batch again when a checkpointed block is recomputed.

    They still read their running statistics, without effect: autograd saved them in the first pass and expects them.
    """
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]  # synchronised ones as well
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def resnet_depth(state: Mapping[str, torch.Tensor]) -> int:
    """Depth of the ResNet that holds these tensors.

    Raises:
        ValueError: its blocks match no known depth.
    """
    bottleneck = "layer1.0.conv3.weight" in state
    blocks = tuple(count(state, rf"layer{layer}\.(\d+)\.") for layer in range(1, 5))
    found = [depth for depth, known in BLOCKS.items() if known == blocks and (depth >= 50) == bottleneck]
    if not found:
        kind = "bottleneck" if bottleneck else "basic"
        raise ValueError(
            f"its layers have {blocks} {kind} blocks, unlike a ResNet of depth {', '.join(map(str, BLOCKS))}"
        )
    return found[0]


def _read(state: State, source: Source) -> dict[str, Any]:
    stem = state["conv1.weight"]
    if stem.ndim != 5:
        raise ValueError(f"conv1.weight has the shape {tuple(stem.shape)}, which is not a kernel of a 3-D convolution")
    shortcut = "B" if any(".downsample." in name for name in state) else "A"
    with torch.device("meta"):
        net = DilatedResNet(resnet_depth(state), stem.shape[1], shortcut, width=stem.shape[0])
    for name in net.state_dict():
        if name.endswith(".num_batches_tracked"):  # which old PyTorch did not count
            state.setdefault(name, torch.tensor(0))
    return net.architecture()


def _network(architecture: Mapping[str, Any], state: State) -> nn.Module:
    return DilatedResNet(**{key: value for key, value in architecture.items() if key != "name"})


def _doubt(tensors: State, file: str) -> str:
    if any(name.startswith("conv_seg.") for name in tensors) or re.match(r"resnet_\d+(_23dataset)?\.pth$", file):
        return ""
    return (
        "may be a MedicalNet, with dilations, or a ResNet of MONAI, with strides, and no tensor shows which: give "
        "--kind medicalnet or --kind monai_resnet"
    )


CHECKPOINTS = {
    "medicalnet": Kind(
        _network,
        _read,
        (r"^layer1\.0\.conv1\.weight 5d", r"^conv1\.weight "),
        left_out={"segmentation or classification": r"^(conv_seg|fc)\."},
        doubt=_doubt,
    )
}
"""Checkpoints of other projects that fill a :class:`DilatedResNet`: the published MedicalNets."""
