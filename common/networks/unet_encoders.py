"""Convolutional U-Nets seen as encoders.

Views, not copies: each holds the very modules of a segmentation network, under the names that they have there. With
``decoder`` the modules of the decoder belong to the encoder file, too, and with ``heads`` the last layers, which turn
features into classes; ``forward`` does not run them. Where a pretext trains the whole network, the decoder is as
pre-trained as the encoder, and where it is a segmentation, the last layers tell its classes without fine-tuning. A
pretext of the encoder alone leaves the decoder out of the file, which fine-tuning takes all the same, and the transfer
report says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from monai.networks.nets import DynUNet, MedNeXt, SegResNet
from torch import nn

from .residual_encoder_unet import ResidualEncoderUNet

HEADS = "layer of classes"

__all__ = ["DynUNetEncoder", "MedNeXtEncoder", "ResidualUNetEncoder", "SegResNetEncoder"]


class DynUNetEncoder(nn.Module):
    """The encoder of MONAI's ``DynUNet``.

    Args:
        network: the segmentation network.
        decoder: whether the decoder belongs to the encoder file.
        heads: whether the last layers do, too. A file that lacks them is refused then, and one for another task.

    ``forward(image (B, C, *spatial))`` returns a map (B, C_i, *grid_i) a stage, finest first; each axis of the image is
    a multiple of the last stride.
    """

    fresh_weights: ClassVar[dict[str, str]] = {"decoder": r"^upsamples\."}
    spare_weights = fresh_weights | {HEADS: r"^(output_block|deep_supervision_heads)\."}
    layer_names: ClassVar[tuple[str, ...]] = (r"input_block\.", r"downsamples\.(\d+)\.", r"bottleneck\.")

    def __init__(self, network: DynUNet, decoder: bool = True, heads: bool = False) -> None:
        super().__init__()
        self.input_block, self.downsamples, self.bottleneck = (
            network.input_block,
            network.downsamples,
            network.bottleneck,
        )
        if decoder:
            self.upsamples = network.upsamples
        self.heads = heads
        if heads:
            self.output_block = network.output_block
            if network.deep_supervision:
                self.deep_supervision_heads = network.deep_supervision_heads
        self.in_channels, self.channels = network.in_channels, tuple(network.filters)
        self.strides = _cumulative(network.strides, network.spatial_dims)
        self.kernels = [list(_tuple(kernel, network.spatial_dims)) for kernel in network.kernel_size]

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        _check_size(image, self.strides[-1])
        return _run([self.input_block, *self.downsamples, self.bottleneck], image)

    def architecture(self) -> dict[str, Any]:
        """What an encoder file records of the network: name and arguments."""
        return {**_describe(self), "kernel_size": self.kernels}


class SegResNetEncoder(nn.Module):
    """The encoder of MONAI's ``SegResNet``; arguments and result as of :class:`DynUNetEncoder`."""

    fresh_weights: ClassVar[dict[str, str]] = {"decoder": r"^up_(layers|samples)\."}
    spare_weights = fresh_weights | {HEADS: r"^conv_final\."}
    layer_names: ClassVar[tuple[str, ...]] = (r"convInit\.", r"down_layers\.(\d+)\.")

    def __init__(self, network: SegResNet, decoder: bool = True, heads: bool = False) -> None:
        super().__init__()
        self.convInit, self.down_layers = network.convInit, network.down_layers
        if decoder:
            self.up_layers, self.up_samples = network.up_layers, network.up_samples
        self.heads = heads
        if heads:
            self.conv_final = network.conv_final
        stages, axes = len(network.down_layers), network.spatial_dims
        self.in_channels, self.blocks = network.in_channels, list(network.blocks_down)
        self.channels = tuple(network.init_filters * 2**stage for stage in range(stages))
        self.strides = _cumulative([1] + [2] * (stages - 1), axes)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        _check_size(image, self.strides[-1])
        return _run(self.down_layers, self.convInit(image))

    def architecture(self) -> dict[str, Any]:
        """What an encoder file records of the network: name and arguments."""
        return {**_describe(self), "depths": self.blocks}


class MedNeXtEncoder(nn.Module):
    """The encoder of MONAI's ``MedNeXt``; arguments and result as of :class:`DynUNetEncoder`."""

    fresh_weights: ClassVar[dict[str, str]] = {"decoder": r"^(up_blocks|dec_stages)\."}
    spare_weights = fresh_weights | {HEADS: r"^out_(\d|blocks)"}
    layer_names: ClassVar[tuple[str, ...]] = (
        r"stem\.",
        r"(?:enc_stages|down_blocks)\.(\d+)\.",  # a stage with the step to the next
        r"bottleneck\.",
    )

    def __init__(self, network: MedNeXt, decoder: bool = True, heads: bool = False) -> None:
        super().__init__()
        self.stem, self.enc_stages, self.down_blocks = network.stem, network.enc_stages, network.down_blocks
        self.bottleneck = network.bottleneck
        if decoder:
            self.up_blocks, self.dec_stages = network.up_blocks, network.dec_stages
        self.heads = heads
        if heads:
            self.out_0 = network.out_0
            if network.do_ds:
                self.out_blocks = network.out_blocks
        weight = network.stem.weight
        self.in_channels, stages = weight.shape[1], len(network.enc_stages) + 1
        self.channels = tuple(weight.shape[0] * 2**stage for stage in range(stages))
        self.strides = _cumulative([1] + [2] * (stages - 1), weight.ndim - 2)
        self.blocks = [len(stage) for stage in (*network.enc_stages, network.bottleneck)]

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        _check_size(image, self.strides[-1])
        maps, x = [], self.stem(image)
        for stage, down in zip(self.enc_stages, self.down_blocks, strict=True):
            maps.append(stage(x))
            x = down(maps[-1])
        return [*maps, self.bottleneck(x)]

    def architecture(self) -> dict[str, Any]:
        """What an encoder file records of the network: name and arguments."""
        return {**_describe(self), "depths": self.blocks}


class ResidualUNetEncoder(nn.Module):
    """The encoder of a :class:`ResidualEncoderUNet`; arguments and result as of :class:`DynUNetEncoder`."""

    fresh_weights: ClassVar[dict[str, str]] = {"decoder": r"^decoder\.(transpconvs|stages)\."}
    spare_weights = fresh_weights | {HEADS: r"^decoder\.seg_layers\."}
    layer_names: ClassVar[tuple[str, ...]] = (r"encoder\.stem\.", r"encoder\.stages\.(\d+)\.")

    def __init__(self, network: ResidualEncoderUNet, decoder: bool = True, heads: bool = False) -> None:
        super().__init__()
        self.encoder = network.encoder
        self.heads = heads
        names = (["transpconvs", "stages"] if decoder else []) + (["seg_layers"] if heads else [])
        if names:
            self.decoder = nn.ModuleDict({name: getattr(network.decoder, name) for name in names})
        self.in_channels, self.channels = network.encoder.in_channels, network.encoder.channels
        self.strides = network.encoder.strides

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return self.encoder(image)

    def architecture(self) -> dict[str, Any]:
        """What an encoder file records of the network: name and arguments."""
        return {**_describe(self), "depths": list(self.encoder.blocks)}


def _run(stages: Iterable[nn.Module], x: torch.Tensor) -> list[torch.Tensor]:
    maps = []
    for stage in stages:
        x = stage(x)
        maps.append(x)
    return maps


def _tuple(value: int | Sequence[int], axes: int) -> tuple[int, ...]:
    return (value,) * axes if isinstance(value, int) else tuple(value)


def _cumulative(strides: Sequence[int | Sequence[int]], axes: int) -> tuple[tuple[int, ...], ...]:
    """Strides of the maps from the strides of the stages."""
    each = [_tuple(stride, axes) for stride in strides]
    return tuple(tuple(math.prod(s[axis] for s in each[: i + 1]) for axis in range(axes)) for i in range(len(each)))


def _describe(encoder: Any) -> dict[str, Any]:
    return {
        "name": type(encoder).__name__,
        "in_channels": encoder.in_channels,
        "channels": list(encoder.channels),
        "strides": [list(stride) for stride in encoder.strides],
    }


def _check_size(image: torch.Tensor, stride: tuple[int, ...]) -> None:
    if any(size % step for size, step in zip(image.shape[2:], stride, strict=True)):
        raise ValueError(
            f"This network needs an image size that is a multiple of {stride}, not {tuple(image.shape[2:])}; set "
            "roi_size to such a size."
        )
