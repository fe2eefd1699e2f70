from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..weights.adapt import adapt_channels
from ..weights.inflate import (
    CONVERT_AGAIN,
    INFLATIONS,
    inflate_depth,
    resample_grid_positions,
    resample_relative_positions,
)

__all__ = ["SliceEmbedding", "SliceEncoder", "SliceTransformerEncoder"]

EMBEDDING = "patch_embedding.weight"
"""Name of the weight (O, C, p, p, K) of a ``SliceEmbedding``."""


class SliceEmbedding(nn.Conv3d):
    """Patch embedding of windows of K neighbouring slices: a convolution with kernel (p, p, K), stride (p, p, 1).

    ``forward(image (B, C, H, W, D))`` returns (B n, out_channels, H/p, W/p), one map for each of the n = D - K + 1
    windows of the image, in the order of their slices within each image. One window has D = K. A run of slices is
    embedded in one step, without cutting out its windows; the result is the same as for each window separately.
    """

    def __init__(self, in_channels: int, out_channels: int, patch_size: int, slices: int) -> None:
        super().__init__(in_channels, out_channels, (patch_size, patch_size, slices), (patch_size, patch_size, 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return super().forward(image).movedim(4, 1).flatten(0, 1)


class SliceEncoder(nn.Module):
    """Base of the slice encoders: 2-D vision transformers with a patch embedding that sees K slices.

    Slices lie along the last axis, so they are axial for a volume in RAS orientation. Sub-classes set ``channels`` and
    ``strides`` and define ``slice_maps``.

    ``forward(image (B, C, H, W, D))`` returns maps (B, C_i, h_i, w_i, n), finest first, one 2-D map for each of the n =
    D - K + 1 windows of K neighbouring slices: one for D = K. ``slice_maps`` returns the same as (B n, C_i, h_i, w_i).
    If the sides of an image are no multiples of the patch, its last row and column are repeated.

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
            raise ValueError(
                f"img_size must be height and width of a slice and slices 1 or more, not {img_size}, {slices}."
            )
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
        """Check the image and pad its sides to multiples of the patch.

        Raises:
            ValueError: the in-plane size is not ``img_size``, there are fewer than K slices, or the number of channels
                differs.
        """
        if image.ndim != 5 or tuple(image.shape[2:4]) != self.img_size or image.shape[1] != self.in_channels:
            raise ValueError(
                f"the network is built for images (B, {self.in_channels}, {self.img_size[0]}, {self.img_size[1]}, "
                f"slices), not {tuple(image.shape)}: set image_size to the in-plane size after the transforms."
            )
        if image.shape[-1] < self.slices:
            raise ValueError(
                f"a window has {self.slices} slices, but the image has {image.shape[-1]}: predict volumes with "
                "common.inferers.SliceWindowInferer, which repeats the slices at the edges."
            )
        down, right = (grid * self.patch_size - side for grid, side in zip(self.grid, self.img_size, strict=True))
        return F.pad(image, (0, 0, 0, right, 0, down), mode="replicate") if down or right else image

    def adapt_weight(
        self, name: str, source: torch.Tensor, tensor: torch.Tensor, record: Mapping[str, Any], inflation: str
    ) -> tuple[torch.Tensor | None, str] | None:
        """Fill a tensor of this encoder for ``common.weights.load_encoder``.

        Args:
            name: name of the tensor.
            source: tensor of the file.
            tensor: tensor of the encoder.
            record: record of the file.
            inflation: as in ``load_encoder``.

        Returns:
            the tensor to use and, in words, how it was made: ``source`` itself if it fits, ``tensor`` itself to keep
                its random values. None and the reason if nothing fits. No pair if no rule covers the tensor.
        """
        if name == EMBEDDING and _embeds_the_same_patches(source, tensor):
            if inflation == "random":
                return tensor, "left as drawn (inflation random)"
            return _adapt_embedding(source, tensor, inflation)
        return None

    def check_inflation(
        self, path: str | os.PathLike, state: Mapping[str, torch.Tensor], record: Mapping[str, Any], inflation: str
    ) -> bool:
        """Whether this encoder can be inflated at all; see ``adapt_weight`` for the arguments.

        Raises:
            ValueError: the file's weights were inflated in another way.
        """
        own = self.state_dict().get(EMBEDDING)
        if own is None or own.ndim != 5:
            return False
        weight = state.get(EMBEDDING)
        slices = weight.shape[-1] if weight is not None and weight.ndim == 5 else 1
        # A net that was trained on windows has no inflation in its record: it is what there is.
        how = record.get("inflation")
        made = how or INFLATIONS[0]
        if slices > 1 and inflation not in (made, "random"):
            raise ValueError(
                f"{path} holds a patch embedding of {slices} slices ({how or 'trained so'}), but inflation is "
                f"{inflation!r}: {CONVERT_AGAIN} `--slices 1` to inflate them here, or set inflation to {made!r}."
            )
        return True


class SliceTransformerEncoder(SliceEncoder):
    """Shared parts of BEiT and plain vision transformers: the embedding, a class token, and maps of some blocks.

    Sub-classes create ``layers`` and define ``slice_maps``.
    """

    layers: nn.ModuleList

    def __init__(
        self,
        in_channels: int,
        img_size: Sequence[int],
        slices: int,
        patch_size: int,
        hidden_size: int,
        num_layers: int,
        out_blocks: Sequence[int],
    ) -> None:
        super().__init__(in_channels, img_size, slices, patch_size)
        self.out_blocks = check_blocks(out_blocks, num_layers)
        self.channels = (hidden_size,) * len(self.out_blocks)
        self.strides = ((patch_size, patch_size, 1),) * len(self.out_blocks)
        self.patch_embedding = SliceEmbedding(in_channels, hidden_size, patch_size, slices)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, hidden_size))

    def adapt_weight(
        self, name: str, source: torch.Tensor, tensor: torch.Tensor, record: Mapping[str, Any], inflation: str
    ) -> tuple[torch.Tensor | None, str] | None:
        """As for ``SliceEncoder``; also resamples tables of positions to another grid."""
        grid, new_grid = record.get("architecture", {}).get("grid"), self.grid
        same = source.shape == tensor.shape and tuple(grid or ()) == new_grid
        if grid and not same and source.ndim == tensor.ndim and source.shape[-1] == tensor.shape[-1]:
            how = f"positions resampled from {grid[0]} x {grid[1]} to {new_grid[0]} x {new_grid[1]} tokens"
            if name.endswith("relative_position_bias_table"):
                return resample_relative_positions(source, grid, new_grid), how
            if name == "position_table":
                return resample_grid_positions(source, grid, new_grid), how
        return super().adapt_weight(name, source, tensor, record, inflation)

    def architecture(self) -> dict[str, Any]:
        """Name and arguments of the network, for the record of an encoder file."""
        layer: Any = self.layers[0]
        return {
            "name": type(self).__name__,
            "in_channels": self.in_channels,
            "patch_size": self.patch_size,
            "slices": self.slices,
            "grid": list(self.grid),
            "hidden_size": self.patch_embedding.out_channels,
            "mlp_dim": layer.mlp.fc1.out_features,
            "num_layers": len(self.layers),
            "num_heads": layer.attention.num_attention_heads,
            "norm_eps": layer.layernorm_before.eps,
        }


def stack(maps: torch.Tensor, batch: int) -> torch.Tensor:
    """Stack maps of slices (B n, C, h, w) to (B, C, h, w, n)."""
    # For torch's older exporter to ONNX: behind `unflatten` it fixes the batch, and it mistakes negative axes of
    # `movedim`. So here and in the other encoders of slices.
    return maps.reshape(batch, -1, *maps.shape[1:]).movedim(1, 4)


def to_tokens(patches: torch.Tensor, cls_token: torch.Tensor) -> torch.Tensor:
    """Embedded patches (B, C, h, w) as tokens (B, 1 + h w, C), the class token first."""
    tokens = patches.flatten(2).transpose(1, 2)
    return torch.cat((cls_token.expand(tokens.shape[0], -1, -1).to(tokens.dtype), tokens), dim=1)


def to_map(tokens: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    """The patch tokens, the last of (B, 1 + registers + h w, C), as a map (B, C, h, w)."""
    patches = tokens[:, -grid[0] * grid[1] :].transpose(1, 2)
    return patches.reshape(*patches.shape[:2], *grid)


def check_blocks(out_blocks: Sequence[int], num_layers: int) -> tuple[int, ...]:
    """``out_blocks`` as a tuple, if they are increasing block numbers."""
    blocks = tuple(out_blocks)
    if not blocks or list(blocks) != sorted(set(blocks)) or not 1 <= blocks[0] <= blocks[-1] <= num_layers:
        raise ValueError(f"out_blocks must be increasing block numbers in 1..{num_layers}, not {list(blocks)}.")
    return blocks


def initialise(module: nn.Module) -> None:
    """Draw linear layers and single tokens like BEiT, DINO and Swin: normal with deviation 0.02, cut at two of them."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    for name, parameter in module.named_parameters():
        if name in ("cls_token", "position_table"):
            nn.init.trunc_normal_(parameter, std=0.02)


def _embeds_the_same_patches(source: torch.Tensor, tensor: torch.Tensor) -> bool:
    """Whether two weights of a ``SliceEmbedding`` differ only in channels and slices."""
    shape, wanted = source.shape, tensor.shape
    return len(shape) == len(wanted) == 5 and shape[0] == wanted[0] and shape[2:4] == wanted[2:4]


def _adapt_embedding(
    source: torch.Tensor, tensor: torch.Tensor, inflation: str
) -> tuple[torch.Tensor, str] | tuple[None, str]:
    had, wanted = source.shape[-1], tensor.shape[-1]
    if source.shape == tensor.shape:
        return source, ""
    if had not in (1, wanted):
        return None, (
            f"was inflated to {had} slices, the encoder takes {wanted}: {CONVERT_AGAIN} `--slices {wanted}`, or "
            "with `--slices 1` to inflate them here"
        )
    how = [f"{had} slice inflated to {wanted} ({inflation})"] if had != wanted else []
    if source.shape[1] != tensor.shape[1]:
        how.append(f"{source.shape[1]} input channels to {tensor.shape[1]}")
    source = adapt_channels(source, tensor.shape[1])
    return inflate_depth(source[..., 0], wanted, inflation) if had != wanted else source, ", ".join(how)
