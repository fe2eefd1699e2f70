"""U-Nets with published weights that no library has: STU-Net and Models Genesis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from .foreign import Kind, State, count
from .stages import run_stages

__all__ = ["CHECKPOINTS", "GenesisEncoder", "GenesisUNet", "STUNet", "STUNetEncoder"]


class STUNet(nn.Module):
    """STU-Net (Huang et al., 2023, arXiv 2304.06716), of which sizes up to 1.4 billion parameters were trained on
    TotalSegmentator. Names and shapes of its tensors are those of the published weights; of their heads it has only the
    last. The defaults are STU-Net-B.

    Args:
        in_channels, out_channels: channels of the image, classes.
        features: channels of each stage.
        blocks: residual blocks of each stage, of the encoder and of the decoder.
        strides: strides of the stages after the first, a number or one per axis.

    ``forward(image (B, C, *spatial))`` returns logits (B, out_channels, *spatial); each axis of the image is a multiple
    of the product of the strides.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        features: Sequence[int] = (32, 64, 128, 256, 512, 512),
        blocks: Sequence[int] = (1, 1, 1, 1, 1, 1),
        strides: Sequence[int | Sequence[int]] = (2, 2, 2, 2, 2),
    ) -> None:
        super().__init__()
        steps = [(step,) * 3 if isinstance(step, int) else tuple(step) for step in strides]
        inputs, entries = [in_channels, *features[:-1]], [(1, 1, 1), *steps]
        self.conv_blocks_context = nn.ModuleList(
            _stage(a, b, n, step) for a, b, n, step in zip(inputs, features, blocks, entries, strict=True)
        )
        pairs = list(zip(features[:0:-1], features[-2::-1], strict=True))
        self.upsample_layers = nn.ModuleList(nn.ModuleDict({"conv": nn.Conv3d(a, b, 1)}) for a, b in pairs)
        self.conv_blocks_localization = nn.ModuleList(
            _stage(2 * b, b, n, (1, 1, 1)) for (_, b), n in zip(pairs, blocks[-2::-1], strict=True)
        )
        # Training has the last head alone. Others that take part in no loss would stop several processes at step two.
        last = len(pairs) - 1
        self.seg_outputs = nn.ModuleDict({str(last): nn.Conv3d(pairs[last][1], out_channels, 1)})
        self.steps = steps

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        maps = run_stages(self.conv_blocks_context, image)
        x = maps.pop()
        for up, stage, step in zip(self.upsample_layers, self.conv_blocks_localization, self.steps[::-1], strict=True):
            x = F.interpolate(x, scale_factor=[float(size) for size in step], mode="nearest")
            convolution: Any = up
            x = stage(torch.cat((convolution["conv"](x), maps.pop()), dim=1))
        (head,) = self.seg_outputs.values()
        return head(x)


class STUNetEncoder(nn.Module):
    """The encoder of a :class:`STUNet`, a view on its modules; ``forward`` returns a map per stage, finest first.

    Args:
        network: the segmentation network.
        decoder: whether the decoder belongs to the encoder file.
    """

    fresh_weights: ClassVar[dict[str, str]] = {"decoder": r"^(upsample_layers|conv_blocks_localization)\."}
    spare_weights = fresh_weights
    layer_names: ClassVar[tuple[str, ...]] = (r"conv_blocks_context\.(\d+)\.",)

    def __init__(self, network: STUNet, decoder: bool = True) -> None:
        super().__init__()
        self.conv_blocks_context = network.conv_blocks_context
        if decoder:
            self.upsample_layers = network.upsample_layers
            self.conv_blocks_localization = network.conv_blocks_localization
        stages: Any = network.conv_blocks_context
        self.in_channels = stages[0][0].conv1.in_channels
        self.channels = tuple(stage[0].conv1.out_channels for stage in stages)
        strides = [(1, 1, 1)]
        for step in network.steps:
            x, y, z = (a * b for a, b in zip(strides[-1], step, strict=True))
            strides.append((x, y, z))
        self.strides = tuple(strides)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return run_stages(self.conv_blocks_context, image)

    def architecture(self) -> dict[str, Any]:
        """What an encoder file records of the network: name and arguments."""
        return _stunet(self.state_dict()) | {"strides": [list(stride) for stride in self.strides]}


class GenesisUNet(nn.Module):
    """The U-Net of Models Genesis (Zhou et al., MICCAI 2019). Names and shapes of its tensors are those of the
    published weights. As in the published code, its norms use batch statistics even in evaluation.

    Args:
        in_channels, out_channels: channels of the image, classes.
        width: channels of the first convolution, 32 in the published weights.

    ``forward(image (B, C, *spatial))`` returns logits (B, out_channels, *spatial), without the published sigmoid; each
    axis of the image is a multiple of 8.
    """

    def __init__(self, in_channels: int, out_channels: int, width: int = 32) -> None:
        super().__init__()
        widths = [in_channels, *(width * 2**level for level in range(1, 5))]
        for level, place in enumerate(DOWN):
            self.add_module(place, nn.ModuleDict({"ops": _pair(widths[level], width * 2**level, widths[level + 1])}))
        for level, place in zip((2, 1, 0), UP, strict=True):
            below = width * 2 ** (level + 2)
            ops = _pair(below + below // 2, below // 2, below // 2)
            self.add_module(place, nn.ModuleDict({"up_conv": nn.ConvTranspose3d(below, below, 2, 2), "ops": ops}))
        self.out_tr = nn.ModuleDict({"final_conv": nn.Conv3d(2 * width, out_channels, 1)})

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        maps = _descend(self, image)
        x = maps.pop()
        for place in UP:
            step: Any = getattr(self, place)
            x = step["ops"](torch.cat((step["up_conv"](x), maps.pop()), dim=1))
        return self.out_tr["final_conv"](x)


class GenesisEncoder(nn.Module):
    """The encoder of a :class:`GenesisUNet`; arguments and result as for :class:`STUNetEncoder`."""

    fresh_weights: ClassVar[dict[str, str]] = {"decoder": r"^up_tr\d+\."}
    spare_weights = fresh_weights
    layer_names: ClassVar[tuple[str, ...]] = (r"down_tr(\d+)\.",)

    def __init__(self, network: GenesisUNet, decoder: bool = True) -> None:
        super().__init__()
        for place in (*DOWN, *(UP if decoder else ())):
            self.add_module(place, getattr(network, place))
        steps: Any = [getattr(network, place)["ops"] for place in DOWN]
        self.in_channels = steps[0][0].conv1.in_channels
        self.channels = tuple(step[1].conv1.out_channels for step in steps)
        self.strides = tuple((2**level,) * 3 for level in range(4))

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return _descend(self, image)

    def architecture(self) -> dict[str, Any]:
        """What an encoder file records of the network: name and arguments."""
        return _genesis(self.state_dict())


DOWN = ("down_tr64", "down_tr128", "down_tr256", "down_tr512")
UP = ("up_tr256", "up_tr128", "up_tr64")


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: Sequence[int], projected: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(inputs, outputs, 3, tuple(stride), 1)  # type: ignore[arg-type]
        self.norm1, self.norm2 = (nn.InstanceNorm3d(outputs, affine=True) for _ in range(2))
        self.conv2 = nn.Conv3d(outputs, outputs, 3, padding=1)
        self.conv3 = nn.Conv3d(inputs, outputs, 1, tuple(stride)) if projected else None  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm2(self.conv2(F.leaky_relu(self.norm1(self.conv1(x)))))
        return F.leaky_relu(y + (x if self.conv3 is None else self.conv3(x)))


class _BatchNorm(nn.BatchNorm3d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)


class _Convolution(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv3d(inputs, outputs, 3, padding=1), _BatchNorm(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn1(self.conv1(x)))


def _stage(inputs: int, outputs: int, blocks: int, stride: Sequence[int]) -> nn.Sequential:
    first = _Residual(inputs, outputs, stride, projected=True)
    return nn.Sequential(first, *(_Residual(outputs, outputs, (1, 1, 1), False) for _ in range(blocks - 1)))


def _pair(inputs: int, between: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(_Convolution(inputs, between), _Convolution(between, outputs))


def _descend(network: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    maps: list[torch.Tensor] = []
    for place in DOWN:
        step: Any = getattr(network, place)
        maps.append(step["ops"](F.max_pool3d(maps[-1], 2) if maps else x))
    return maps


def _stunet(state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    stages = count(state, r"conv_blocks_context\.(\d+)\.")
    first = [state[f"conv_blocks_context.{stage}.0.conv1.weight"] for stage in range(stages)]
    return {
        "name": "STUNetEncoder",
        "in_channels": first[0].shape[1],
        "channels": [weight.shape[0] for weight in first],
        "depths": [count(state, rf"conv_blocks_context\.{stage}\.(\d+)\.") for stage in range(stages)],
    }


def _make_stunet(architecture: Mapping[str, Any], state: State) -> nn.Module:
    network = STUNet(
        architecture["in_channels"],
        1,
        architecture["channels"],
        architecture["depths"],
        [2] * (len(architecture["channels"]) - 1),
    )
    return STUNetEncoder(network, decoder=any(name.startswith("upsample_layers.") for name in state))


def _genesis(state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    stem = state["down_tr64.ops.0.conv1.weight"]
    return {"name": "GenesisEncoder", "in_channels": stem.shape[1], "width": stem.shape[0]}


def _make_genesis(architecture: Mapping[str, Any], state: State) -> nn.Module:
    network = GenesisUNet(architecture["in_channels"], 1, architecture["width"])
    return GenesisEncoder(network, decoder=any(name.startswith("up_tr") for name in state))


CHECKPOINTS = {
    # No tensor tells its strides: those of the published weights are 2 in each step.
    "stunet": Kind(
        _make_stunet,
        lambda state, source: _stunet(state) | {"strides": None},
        (r"^conv_blocks_context\.0\.0\.conv1\.weight 5d", r"^conv_blocks_context\.0\.0\.conv3\.weight 5d"),
        left_out={"last layers": r"^seg_outputs\."},
    ),
    "genesis": Kind(
        _make_genesis,
        lambda state, source: _genesis(state),
        (r"^down_tr64\.ops\.0\.conv1\.weight 5d", r"^down_tr512\.ops\.1\.bn1\.weight 1d"),
        left_out={"last layer": r"^out_tr\."},
    ),
}
"""Checkpoints that fill these encoders."""
