from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import BeitConfig, UperNetConfig
from transformers.models.beit.modeling_beit import BeitFPNNeck
from transformers.models.upernet.modeling_upernet import UperNetHead

from .resize import resize_linear
from .slice_encoder import SliceEncoder, stack
from .sync_batch_norm import needs_several_values

__all__ = ["TARGETS", "TransSeg"]

TARGETS = ("centre", "all")


class TransSeg(nn.Module):
    """Segmentation of slices by a 2-D vision transformer that sees K neighbouring slices, with a UPerNet decoder [1].

    ``forward(image (B, C, H, W, D))`` returns logits (B, out_channels, H, W, n) for the centre slices of the n = D - K
    + 1 windows of K neighbouring slices. One window (D = K), as in training, gives one slice; a run of slices gives
    more, with its patches embedded in one step. For whole volumes, including windows at the ends, use
    ``common.inferers.SliceWindowInferer``.

    The decoder is that of ``transformers`` [2]. Maps of one stride, as from BEiT and DINO, first pass a pyramid neck
    (strides p/4, p/2, p and 2p); a pyramid such as Swin's does not need it. The logits are resized bilinearly to the
    image, in float32.

    Args:
        in_channels: channels of the image.
        out_channels: classes, background included.
        img_size: height and width of every input.
        encoder: makes the encoder; called with ``in_channels``, ``img_size`` and ``slices``.
        slices: K, an odd number, so there is a centre.
        decoder_channels: channels of UPerNet; [1] uses those of the encoder. With BEiT-B, the decoder takes 82 % of the
            net's operations.
        dropout: rate of dropped channels ahead of the classifier.
        target: ``"centre"``, or ``"all"`` to predict all slices of a window together (table 4a of [1]): D and n are
            then K.

    Raises:
        ValueError: the number of slices is even, ``target`` is unknown, or the encoder does not give four maps; in
            ``forward``, the input does not fit, or training gets a single slice, too few for a batch norm.

    References:
        - [1] Zhang et al., Adapting Pre-trained Vision Transformers from 2D to 3D through Weight Inflation Improves
          Medical Image Segmentation, ML4H 2022.
        - [2] Xiao et al., Unified Perceptual Parsing for Scene Understanding, ECCV 2018.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        img_size: Sequence[int],
        encoder: Callable[..., SliceEncoder],
        slices: int = 5,
        decoder_channels: int = 768,
        dropout: float = 0.1,
        target: str = "centre",
    ) -> None:
        super().__init__()
        if slices % 2 == 0:
            raise ValueError(f"a window needs an odd number of slices to have a centre, not {slices}.")
        if target not in TARGETS:
            raise ValueError(f"target must be one of {', '.join(TARGETS)}, not {target!r}.")
        self.slices = slices
        self.out_channels = out_channels
        self.target = target
        self.encoder = encoder(in_channels=in_channels, img_size=img_size, slices=slices)
        channels, strides = self.encoder.channels, self.encoder.strides
        if len(channels) != 4:
            raise ValueError(f"UPerNet takes four maps of an encoder, not {len(channels)}; see out_blocks or depths.")
        one_stride = len(set(strides)) == 1
        self.neck: nn.Module = BeitFPNNeck(BeitConfig(hidden_size=channels[0])) if one_stride else nn.Identity()
        outputs = out_channels * (slices if target == "all" else 1)
        settings: Any = UperNetConfig(hidden_size=decoder_channels, pool_scales=[1, 2, 3, 6])
        self.decoder = UperNetHead(settings, list(channels))
        for block, cells in zip(self.decoder.psp_modules.blocks, settings.pool_scales, strict=True):
            block.layers[0] = _AveragePool(cells)
            block.add_module("0", block.layers[0])
        self.decoder.classifier = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(decoder_channels, outputs, 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        windows = image.shape[0] * (image.shape[-1] - self.slices + 1)
        if self.training and windows == 1 and needs_several_values(self.decoder):
            raise ValueError("training takes two windows or more at a time, for the batch norms: raise batch_size.")
        if self.target == "all" and image.shape[-1] != self.slices:
            raise ValueError(
                f"a net that predicts all slices takes {self.slices} slices at a time, not {image.shape[-1]}: predict "
                "volumes with common.inferers.SliceWindowInferer(target='all')."
            )
        logits = self.decoder(self.neck(self.encoder.slice_maps(image)))
        size = [tokens * self.encoder.patch_size for tokens in self.encoder.grid]
        logits = resize_linear(logits, size)[..., : image.shape[2], : image.shape[3]]
        if self.target == "all":
            return logits.reshape(-1, self.out_channels, self.slices, *logits.shape[2:]).movedim(2, 4)
        return stack(logits, image.shape[0])


class _AveragePool(nn.AdaptiveAvgPool2d):
    """torch's layer; its older ONNX exporter accepts it only if the cells divide the map."""

    def __init__(self, cells: int) -> None:
        super().__init__(cells)
        self.cells = cells

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not torch.onnx.is_in_onnx_export():
            return super().forward(input)
        for axis in (2, 3):
            side = int(input.shape[axis])
            bounds = [(cell * side // self.cells, -(-(cell + 1) * side // self.cells)) for cell in range(self.cells)]
            means = [input.narrow(axis, start, end - start).mean(axis, keepdim=True) for start, end in bounds]
            input = torch.cat(means, axis)
        return input
