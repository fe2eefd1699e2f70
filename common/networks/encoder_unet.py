from __future__ import annotations

import itertools
from typing import Any

import torch
from monai.networks.blocks import UnetrBasicBlock, UnetrPrUpBlock, UnetrUpBlock
from torch import nn

from .stages import check_size

__all__ = ["EncoderUNet", "refuse_decoder"]


class EncoderUNet(nn.Module):
    """A U-Net decoder over any encoder of volumes with maps that get coarser: upsampling, joined with the encoder's
    maps.

    If the finest map is coarser than the image, the last join is with a block of convolutions on the image itself, as
    in UNETR and Swin UNETR. The decoder uses their blocks. Maps of one stride, as from a ViT, are first upsampled to
    halves of it by UNETR's transposed convolutions; the earliest map becomes the finest.

    Args:
        encoder: returns maps, finest first, and states ``in_channels``, ``channels`` and ``strides``.
        out_channels: classes, background included.
        width: least number of channels. It is also the number at full resolution if the encoder begins coarser than the
            image.

    ``forward(image (B, C, *spatial))`` returns logits (B, out_channels, *spatial); each axis of the image is a multiple
    of the last stride.

    Raises:
        ValueError: strides neither grow from map to map nor are all equal with room for their halves; in ``forward``,
            the size is no such multiple.
    """

    def __init__(self, encoder: nn.Module, out_channels: int, width: int = 16) -> None:
        super().__init__()
        self.encoder = encoder
        view: Any = encoder
        channels, strides = list(view.channels), [tuple(stride) for stride in view.strides]
        self.lifts: nn.ModuleList | None = None
        levels = len(strides) - 1  # by which the earliest map is brought up
        if levels and len(set(strides)) == 1 and not any(side % 2**levels for side in strides[0]):
            widths = [width * 2 ** (level + 1) for level in range(levels)]
            self.lifts = nn.ModuleList(
                UnetrPrUpBlock(3, count, wide, levels - 1 - place, 3, 1, 2, "instance", res_block=True)
                for place, (count, wide) in enumerate(zip(channels, widths, strict=False))
            )
            channels = [*widths, channels[-1]]
            last = strides[0]
            strides = [(last[0] >> up, last[1] >> up, last[2] >> up) for up in range(levels, -1, -1)]
        self.image_block: nn.Module | None = None
        if max(strides[0]) > 1:
            self.image_block = UnetrBasicBlock(3, view.in_channels, width, 3, 1, "instance", res_block=True)
            channels, strides = [width, *channels], [(1,) * len(strides[0]), *strides]
        steps = [
            tuple(b // a for a, b in zip(fine, coarse, strict=True)) for fine, coarse in itertools.pairwise(strides)
        ]
        if any(max(step) < 2 for step in steps):
            raise ValueError(
                f"a U-Net needs maps that get coarser, or several of one stride; the encoder has strides {strides}."
            )
        self.stride = strides[-1]
        widths = [max(count, width) for count in channels[:-1]] + channels[-1:]
        self.skips = nn.ModuleList(
            nn.Conv3d(count, wide, 1) if count != wide else nn.Identity()
            for count, wide in zip(channels[:-1], widths[:-1], strict=True)
        )
        self.ups = nn.ModuleList(
            UnetrUpBlock(3, widths[i + 1], widths[i], 3, step, "instance", res_block=True)
            for i, step in enumerate(steps)
        )
        self.head = nn.Conv3d(widths[0], out_channels, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        check_size(image.shape[2:], self.stride)
        maps = list(self.encoder(image))
        if self.lifts is not None:
            maps = [*(lift(one) for lift, one in zip(self.lifts, maps, strict=False)), maps[-1]]
        if self.image_block is not None:
            maps = [self.image_block(image), *maps]
        x = maps.pop()
        for up, skip, fine in zip(reversed(self.ups), reversed(self.skips), reversed(maps), strict=True):
            x = up(x, skip(fine))
        return self.head(x)


def refuse_decoder(encoder: nn.Module, decoder: bool) -> None:
    """Refuse ``decoder=True`` for an encoder that has none, so that overlays for U-Nets fit it with ``False``.

    Raises:
        ValueError: ``decoder`` is true.
    """
    if decoder:
        raise ValueError(
            f"{type(encoder).__name__} has no decoder of its own: set `decoder` to false, or leave it out."
        )
