from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .stages import check_size, run_stages, triple

__all__ = ["ResidualEncoder", "ResidualEncoderUNet"]


class ResidualEncoderUNet(nn.Module):
    """U-Net with a residual encoder, the network of nnU-Net's ResEnc plans.

    Source: Isensee et al., "nnU-Net Revisited", MICCAI 2024. Names and shapes of its tensors are those of the package
    ``dynamic_network_architectures`` (without the second name of each tensor), so weights of nnU-Net and of OpenMind
    fit. The defaults are the L plan.

    Args:
        in_channels, out_channels: channels of the image, classes.
        features: channels of each stage.
        blocks: residual blocks of each stage of the encoder.
        strides: stride of each stage, a number or one per axis; the first is 1 in all plans.
        kernel_size: kernel size of all convolutions except projections, a number or one per stage.
        decoder_blocks: convolutions of each stage of the decoder.
        deep_supervision: whether training returns the logits of every decoder stage except the coarsest, finest first,
            for MONAI's ``DeepSupervisionLoss``. In evaluation only the finest logits are computed.

    ``forward(image (B, C, *spatial))`` returns logits (B, out_channels, *spatial), or a list of them.

    Raises:
        ValueError: the lists differ in length; when called, the image is no multiple of the strides.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        features: Sequence[int] = (32, 64, 128, 256, 320, 320),
        blocks: Sequence[int] = (1, 3, 4, 6, 6, 6),
        strides: Sequence[int | Sequence[int]] = (1, 2, 2, 2, 2, 2),
        kernel_size: int | Sequence[Any] = 3,
        decoder_blocks: int | Sequence[int] = 1,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        stages = len(features)
        kernels = [kernel_size] * stages if isinstance(kernel_size, int) else list(kernel_size)
        convs = [decoder_blocks] * (stages - 1) if isinstance(decoder_blocks, int) else list(decoder_blocks)
        if not stages == len(blocks) == len(strides) == len(kernels) == len(convs) + 1:
            raise ValueError(
                "features, blocks, strides and kernel_size need one value per stage, decoder_blocks one less, not "
                f"{[stages, len(blocks), len(strides), len(kernels), len(convs)]}."
            )
        self.deep_supervision = deep_supervision
        self.encoder = ResidualEncoder(in_channels, features, blocks, strides, kernels)
        self.decoder = _Decoder(out_channels, features, strides, kernels, convs)
        self.apply(_initialize)
        for module in self.modules():
            if isinstance(module, _Block):  # each block begins as the identity
                nn.init.zeros_(module.conv2.norm.weight)

    def forward(self, image: torch.Tensor) -> Any:
        every = self.deep_supervision and self.training
        logits = self.decoder(self.encoder(image), every)
        return logits if every else logits[0]


class ResidualEncoder(nn.Module):
    """The encoder of a :class:`ResidualEncoderUNet`.

    ``forward(image (B, C, *spatial))`` returns a map per stage, finest first.
    """

    def __init__(
        self,
        in_channels: int,
        features: Sequence[int],
        blocks: Sequence[int],
        strides: Sequence[int | Sequence[int]],
        kernels: Sequence[Any],
    ) -> None:
        super().__init__()
        self.in_channels, self.channels = in_channels, tuple(features)
        self.strides: tuple[tuple[int, int, int], ...] = ()
        stages, previous = [], features[0]
        self.stem = _Convolutions(in_channels, features[0], kernels[0], 1, 1)
        for width, count, stride, kernel in zip(features, blocks, strides, kernels, strict=True):
            stages.append(_Stage(previous, width, kernel, stride, count))
            above, step = self.strides[-1] if self.strides else (1, 1, 1), triple(stride)
            self.strides += ((above[0] * step[0], above[1] * step[1], above[2] * step[2]),)
            previous = width
        self.stages = nn.Sequential(*stages)
        self.blocks = tuple(blocks)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        check_size(image.shape[2:], self.strides[-1], "This residual U-Net")
        return run_stages(self.stages, self.stem(image))


class _Decoder(nn.Module):
    def __init__(
        self,
        out_channels: int,
        features: Sequence[int],
        strides: Sequence[int | Sequence[int]],
        kernels: Sequence[Any],
        convs: Sequence[int],
    ) -> None:
        super().__init__()
        self.transpconvs, self.stages, self.seg_layers = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for stage, count in zip(range(len(features) - 1, 0, -1), convs, strict=True):
            below, width, stride = features[stage], features[stage - 1], triple(strides[stage])
            self.transpconvs.append(nn.ConvTranspose3d(below, width, stride, stride))
            self.stages.append(_Convolutions(2 * width, width, kernels[stage - 1], 1, count))
            self.seg_layers.append(nn.Conv3d(width, out_channels, 1))

    def forward(self, maps: list[torch.Tensor], every: bool) -> list[torch.Tensor]:
        x, logits = maps[-1], []
        for number, (up, stage, head) in enumerate(zip(self.transpconvs, self.stages, self.seg_layers, strict=True)):
            x = stage(torch.cat((up(x), maps[-number - 2]), 1))
            if every or number == len(self.stages) - 1:
                logits.append(head(x))
        return logits[::-1]


class _Convolution(nn.Module):
    """Convolution, instance norm and an optional leaky ReLU."""

    def __init__(
        self, inside: int, outside: int, kernel: Any, stride: Any = 1, bias: bool = True, act: bool = True
    ) -> None:
        super().__init__()
        x, y, z = triple(kernel)
        padding = ((x - 1) // 2, (y - 1) // 2, (z - 1) // 2)
        self.conv = nn.Conv3d(inside, outside, (x, y, z), triple(stride), padding, bias=bias)
        self.norm = nn.InstanceNorm3d(outside, affine=True)
        self.nonlin = nn.LeakyReLU(inplace=True) if act else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.nonlin(self.norm(self.conv(x)))


class _Convolutions(nn.Module):
    def __init__(self, inside: int, outside: int, kernel: Any, stride: Any, count: int) -> None:
        super().__init__()
        widths = [inside] + [outside] * count
        self.convs = nn.Sequential(
            *(_Convolution(widths[i], outside, kernel, stride if i == 0 else 1) for i in range(count))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.convs(x)


class _Block(nn.Module):
    """Residual block of ResNet-D: the shortcut averages before it projects."""

    def __init__(self, inside: int, outside: int, kernel: Any, stride: Any) -> None:
        super().__init__()
        stride = triple(stride)
        self.conv1 = _Convolution(inside, outside, kernel, stride)
        self.conv2 = _Convolution(outside, outside, kernel, act=False)
        skip: list[nn.Module] = [nn.AvgPool3d(stride, stride)] if max(stride) > 1 else []
        if inside != outside:
            skip.append(_Convolution(inside, outside, 1, bias=False, act=False))
        self.skip = nn.Sequential(*skip)
        self.nonlin2 = nn.LeakyReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.nonlin2(self.conv2(self.conv1(x)) + self.skip(x))


class _Stage(nn.Module):
    def __init__(self, inside: int, outside: int, kernel: Any, stride: Any, count: int) -> None:
        super().__init__()
        first = _Block(inside, outside, kernel, stride)
        self.blocks = nn.Sequential(first, *(_Block(outside, outside, kernel, 1) for _ in range(count - 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(x)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
