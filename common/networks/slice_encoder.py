from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["SliceEmbedding", "SliceEncoder"]


class SliceEmbedding(nn.Conv3d):
    """Patch embedding of windows of K neighbouring slices: a convolution with kernel (p, p, K), stride (p, p, 1).

    ``forward(image (B, C, H, W, D))`` returns (B n, out_channels, H/p, W/p), one map for each of the n = D - K + 1
    windows of the image, in the order of their slices within each image. One window is D = K; a run of slices is
    embedded at once, without cutting its windows out. Each window is embedded as by itself.
    """

    def __init__(self, in_channels: int, out_channels: int, patch_size: int, slices: int) -> None:
        super().__init__(in_channels, out_channels, (patch_size, patch_size, slices), (patch_size, patch_size, 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return super().forward(image).movedim(4, 1).flatten(0, 1)


class SliceEncoder(nn.Module):
    """What the encoders of slices have in common: 2-D vision transformers whose patch embedding sees K slices.

    Slices lie along the last axis, so that a volume in RAS orientation has axial ones. Sub-classes set ``channels``
    and ``strides`` and define ``slice_maps``.

    ``forward(image (B, C, H, W, D))`` returns maps (B, C_i, h_i, w_i, n), finest first, one 2-D map for each of the
    n = D - K + 1 windows of K neighbouring slices: one for D = K. ``slice_maps`` returns the same as (B n, C_i, h_i,
    w_i). An image whose sides are no multiples of the patch is continued by its last row and column.

    Args:
        in_channels: channels of a slice.
        img_size: height and width of every input.
        slices: K.
        patch_size: side of a patch.
    """

    channels: tuple[int, ...]
    strides: tuple[tuple[int, int, int], ...]

    def __init__(self, in_channels: int, img_size: Sequence[int], slices: int, patch_size: int) -> None:
        super().__init__()
        if slices < 1 or min(img_size) < 1 or len(img_size) != 2:
            raise ValueError(f"img_size is height and width of a slice and slices 1 or more, not {img_size}, {slices}.")
        self.in_channels = in_channels
        self.img_size = (int(img_size[0]), int(img_size[1]))
        self.slices = slices
        self.patch_size = patch_size
        self.grid = tuple(-(-side // patch_size) for side in self.img_size)

    def slice_maps(self, image: torch.Tensor) -> list[torch.Tensor]:
        raise NotImplementedError

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return [stack(x, image.shape[0]) for x in self.slice_maps(image)]

    def padded(self, image: torch.Tensor) -> torch.Tensor:
        """The image, checked, with sides that are multiples of the patch.

        Raises:
            ValueError: another in-plane size than ``img_size``, fewer slices than K, or another number of channels.
        """
        if image.ndim != 5 or tuple(image.shape[2:4]) != self.img_size or image.shape[1] != self.in_channels:
            raise ValueError(
                f"the network is built for images (B, {self.in_channels}, {self.img_size[0]}, {self.img_size[1]}, "
                f"slices), not {tuple(image.shape)}: set image_size to the in-plane size that the transforms make."
            )
        if image.shape[-1] < self.slices:
            raise ValueError(
                f"a window has {self.slices} slices, the image {image.shape[-1]}: predict volumes with "
                "common.inferers.SliceWindowInferer, which repeats the slices at the edges."
            )
        down, right = (grid * self.patch_size - side for grid, side in zip(self.grid, self.img_size, strict=True))
        return F.pad(image, (0, 0, 0, right, 0, down), mode="replicate") if down or right else image


def stack(maps: torch.Tensor, batch: int) -> torch.Tensor:
    """Maps of slices (B n, C, h, w) as (B, C, h, w, n)."""
    # For torch's older exporter to ONNX: behind `unflatten` it fixes the batch, and it mistakes negative axes of
    # `movedim`. So here and in the other encoders of slices.
    return maps.reshape(batch, -1, *maps.shape[1:]).movedim(1, 4)


def to_tokens(patches: torch.Tensor, cls_token: torch.Tensor) -> torch.Tensor:
    """Embedded patches (B, C, h, w) as tokens (B, 1 + h w, C), the class token first."""
    tokens = patches.flatten(2).transpose(1, 2)
    return torch.cat((cls_token.expand(tokens.shape[0], -1, -1).to(tokens.dtype), tokens), dim=1)


def to_map(tokens: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    """The patch tokens of (B, 1 + h w, C) as a map (B, C, h, w)."""
    patches = tokens[:, 1:].transpose(1, 2)
    return patches.reshape(*patches.shape[:2], *grid)


def transformer_architecture(encoder: Any) -> dict[str, Any]:
    """What an encoder file records of a plain transformer of slices."""
    layer = encoder.layers[0]
    return {
        "name": type(encoder).__name__,
        "in_channels": encoder.in_channels,
        "patch_size": encoder.patch_size,
        "slices": encoder.slices,
        "grid": list(encoder.grid),
        "hidden_size": encoder.patch_embedding.out_channels,
        "mlp_dim": layer.mlp.fc1.out_features,
        "num_layers": len(encoder.layers),
        "num_heads": layer.attention.num_attention_heads,
        "norm_eps": layer.layernorm_before.eps,
    }


def check_blocks(out_blocks: Sequence[int], num_layers: int) -> tuple[int, ...]:
    """``out_blocks`` as a tuple, if they are increasing block numbers."""
    blocks = tuple(out_blocks)
    if not blocks or list(blocks) != sorted(set(blocks)) or not 1 <= blocks[0] <= blocks[-1] <= num_layers:
        raise ValueError(f"out_blocks are increasing block numbers in 1..{num_layers}, not {list(blocks)}.")
    return blocks


def initialise(module: nn.Module) -> None:
    """Draw linear layers and single tokens as BEiT, DINO and Swin do: normal, cut at two deviations of 0.02."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    for name, parameter in module.named_parameters():
        if name in ("cls_token", "position_table"):
            nn.init.trunc_normal_(parameter, std=0.02)
