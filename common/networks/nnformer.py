from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from monai.networks.layers import DropPath
from monai.utils import ensure_tuple_rep
from torch import nn
from torch.nn import functional as F

from .stages import depth_rates
from .window_attention import MASKED, window_attention

__all__ = ["NNFormer", "NNFormerEncoder"]

logger = logging.getLogger(__name__)


class NNFormer(nn.Module):
    """nnFormer [1]: Swin blocks in the encoder and in the decoder, convolutions in between.

    Parameters have the names of the published code, so its checkpoints load directly. Tensors pass through the network
    with channels last, so convolutions (channels_last_3d) and layer norms share one layout.

    The base arguments are those of [2] for Synapse (crops of 64 x 128 x 128); for brain tumours [2] uses
    ``embed_dim=96, patch_size=4, num_heads=(3, 6, 12, 24), decoder_num_heads=(6, 12, 24)`` and four channels.

    Args:
        in_channels: channels of the image.
        out_channels: classes, background included.
        img_size: voxels per axis of the crops; a multiple of ``patch_size * 2 ** (stages - 1)``. Other such multiples
            run as well. It decides which stages have a grid so small that it is one window.
        embed_dim: channels of the first stage; they double from stage to stage.
        patch_size: voxels per axis of a token of the first stage: 1, 2 or 4 on each axis.
        depths: blocks of each encoder stage; decoder stages have as many.
        num_heads: attention heads of each stage.
        decoder_num_heads: attention heads of the decoder's stages, finest first; by default as in the encoder.
        window_size: tokens per axis of each stage's windows; by default the paper's, for up to four stages.
        mlp_ratio: width of the MLPs.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0.
        deep_supervision: whether training returns the logits of every decoder stage, finest first, each at its own
            resolution (the first at the image's). In evaluation mode only the first is returned.
        legacy_rel_index: number relative positions like the published code, with ``3W - 1`` instead of ``(2W - 1)^2``,
            so many offsets share one bias (343 offsets share 115 for windows of 4). Weights from that code need it.

    Input (B, in_channels, D, H, W), output (B, out_channels, D, H, W) or a list in training with deep supervision.

    Raises:
        ValueError: the patch size is not 1, 2 or 4, settings differ in length, or a size is no such multiple.

    References:
        - [1] Zhou et al., nnFormer: Volumetric Medical Image Segmentation via a 3D Transformer, TIP 2023, section III.
        - [2] Hu et al., Enhancing 3D Transformer Segmentation Model for Medical Image with Token-level Representation
          Learning, section 4.2.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 14,
        img_size: Sequence[int] | int = (64, 128, 128),
        embed_dim: int = 192,
        patch_size: Sequence[int] | int = (2, 4, 4),
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (6, 12, 24, 48),
        decoder_num_heads: Sequence[int] | None = None,
        window_size: Sequence[int] | None = None,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.2,
        deep_supervision: bool = True,
        legacy_rel_index: bool = False,
    ) -> None:
        super().__init__()
        stages = len(depths)
        window_size = window_size or [8 if stage == 2 else 4 for stage in range(stages)]
        decoder_num_heads = decoder_num_heads or num_heads[:-1]
        if stages < 2 or len(num_heads) != stages or len(window_size) != stages or len(decoder_num_heads) != stages - 1:
            raise ValueError(
                "nnFormer needs one entry per stage (two or more) in depths, num_heads and window_size, one less in "
                f"decoder_num_heads; got {list(depths)}, {list(num_heads)}, {list(window_size)} and "
                f"{list(decoder_num_heads)}."
            )
        img_size, patch_size = ensure_tuple_rep(img_size, 3), ensure_tuple_rep(patch_size, 3)
        self.out_channels = out_channels
        self.deep_supervision = deep_supervision
        self.model_down = NNFormerEncoder(
            in_channels,
            img_size,
            embed_dim,
            patch_size,
            depths,
            num_heads,
            window_size,
            mlp_ratio,
            drop_path_rate,
            legacy_rel_index,
        )
        self.decoder = _Decoder(
            [grid_of(img_size, stride) for stride in self.model_down.strides[:-1]],
            embed_dim,
            depths[:-1],
            decoder_num_heads,
            window_size,
            mlp_ratio,
            drop_path_rate,
            legacy_rel_index,
        )
        heads = stages - 1 if deep_supervision else 1
        self.final = nn.ModuleList(
            _PatchExpanding(embed_dim * 2**stage, out_channels, patch_size) for stage in range(heads)
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        maps = self.decoder([channels_last(map) for map in self.model_down(image)])
        if not (self.training and self.deep_supervision):
            return self.final[0](maps[0])
        return [final(map) for final, map in zip(self.final, maps, strict=True)]


class NNFormerEncoder(nn.Module):
    """The encoder of ``NNFormer``, with arguments of the same names.

    ``forward(image (B, C, D, H, W))`` returns one normalised map per stage, finest first, with
    ``embed_dim * (1, 2, 4, ...)`` channels.
    """

    layer_names: ClassVar[tuple[str, ...]] = (r"patch_embed\.", r"(?:layers\.|norm)(\d+)\.")

    def __init__(
        self,
        in_channels: int,
        img_size: Sequence[int],
        embed_dim: int,
        patch_size: Sequence[int],
        depths: Sequence[int],
        num_heads: Sequence[int],
        window_size: Sequence[int],
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.2,
        legacy_rel_index: bool = False,
    ) -> None:
        super().__init__()
        if not all(size in (1, 2, 4) for size in patch_size):
            raise ValueError(f"patch_size of nnFormer must be 1, 2 or 4 on each axis, not {list(patch_size)}.")
        self.in_channels, self.patch_size = in_channels, tuple(patch_size)
        self.channels = tuple(embed_dim * 2**stage for stage in range(len(depths)))
        self.strides = tuple(tuple(size * 2**stage for size in self.patch_size) for stage in range(len(depths)))
        self._architecture = {
            "name": "NNFormerEncoder",
            "in_channels": in_channels,
            "patch_size": list(patch_size),
            "embed_dim": embed_dim,
            "depths": list(depths),
            "num_heads": list(num_heads),
            "mlp_ratio": mlp_ratio,
            "legacy_rel_index": legacy_rel_index,
        }
        self._check(img_size)
        self.patch_embed = _PatchEmbedding(in_channels, embed_dim, self.patch_size)
        rates = depth_rates(drop_path_rate, sum(depths))
        layers = []
        for stage, depth in enumerate(depths):
            grid = grid_of(img_size, self.strides[stage])
            window, shift = _window(grid, window_size[stage])
            first = sum(depths[:stage])
            layers.append(
                _Stage(
                    [
                        _Block(
                            self.channels[stage],
                            num_heads[stage],
                            window,
                            shift if number % 2 else 0,
                            mlp_ratio,
                            rates[first + number],
                            legacy_rel_index,
                            grid,
                        )
                        for number in range(depth)
                    ],
                    _PatchMerging(self.channels[stage]) if stage + 1 < len(depths) else None,
                )
            )
        _warn_of_unfilled_windows(grid, window, window_size[-1], self.strides[-1])
        self.layers = nn.ModuleList(layers)
        for stage, channels in enumerate(self.channels):
            self.add_module(f"norm{stage}", nn.LayerNorm(channels))
        self._architecture["window_size"] = [layer.blocks[0].window for layer in layers]

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        self._check(image.shape[2:])
        tokens = self.patch_embed(image)
        maps = []
        layer: Any
        for stage, layer in enumerate(self.layers):
            for block in layer.blocks:
                tokens = block(tokens)
            maps.append(channels_first(getattr(self, f"norm{stage}")(tokens)))
            if layer.downsample is not None:
                tokens = layer.downsample(tokens)
        return maps

    def architecture(self) -> dict:
        """Name and arguments of the network, for the record of an encoder file."""
        return dict(self._architecture)

    def _check(self, size: Sequence[int]) -> None:
        deepest = self.strides[-1]
        if any(voxels % stride for voxels, stride in zip(size, deepest, strict=True)):
            raise ValueError(
                f"nnFormer needs an image size that is a multiple of {list(deepest)}, not {list(size)}; set roi_size "
                "to such a size, and image_size to at least that."
            )


class _Decoder(nn.Module):
    """Stages from the second deepest to the finest; ``forward(maps)`` returns their maps, finest first."""

    def __init__(
        self,
        grids: Sequence[Sequence[int]],
        embed_dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        window_size: Sequence[int],
        mlp_ratio: float,
        drop_path_rate: float,
        legacy_rel_index: bool,
    ) -> None:
        super().__init__()
        # As published: the rates grow from the deepest stage to the finest.
        rates = depth_rates(drop_path_rate, sum(depths))
        layers = []
        for stage, depth in enumerate(depths):
            channels, first = embed_dim * 2**stage, sum(depths[stage + 1 :])
            window, shift = _window(grids[stage], window_size[stage])
            layers.append(
                _UpStage(
                    [
                        (_CrossBlock if number == 0 else _Block)(
                            channels,
                            num_heads[stage],
                            window,
                            shift if number else 0,
                            mlp_ratio,
                            rates[first + number],
                            legacy_rel_index,
                            grids[stage],
                        )
                        for number in range(depth)
                    ],
                    channels,
                )
            )
        self.layers = nn.ModuleList(layers)

    def forward(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        tokens, decoded = maps[-1], []
        for stage in reversed(range(len(self.layers))):
            tokens = self.layers[stage](tokens, maps[stage])
            decoded.append(tokens)
        return decoded[::-1]


class _Stage(nn.Module):
    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample


class _UpStage(nn.Module):
    def __init__(self, blocks: Sequence[nn.Module], channels: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.Upsample = _Upsample(channels)

    def forward(self, tokens: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        up = self.Upsample(tokens)
        tokens = self.blocks[0](up + skip, up, skip)
        for block in self.blocks[1:]:
            tokens = block(tokens)
        return tokens


class _Convolutions(nn.Module):
    """Two 3x3x3 convolutions, the first with a stride, GELU and layer norm after each (optional for the last)."""

    def __init__(self, in_channels: int, out_channels: int, stride: Sequence[int], last: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, out_channels, 3, stride=(stride[0], stride[1], stride[2]), padding=1)
        self.conv2 = nn.Conv3d(out_channels, out_channels, 3, padding=1)
        self.norm1 = nn.LayerNorm(out_channels)
        self.norm2 = None if last else nn.LayerNorm(out_channels)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        image = channels_first(self.norm1(channels_last(F.gelu(self.conv1(image)))))
        image = self.conv2(image)
        return image if self.norm2 is None else channels_first(self.norm2(channels_last(F.gelu(image))))


class _PatchEmbedding(nn.Module):
    """Overlapping convolutional stem ([1], section III-B1): image (B, C, D, H, W) -> tokens (B, d, h, w, E)."""

    def __init__(self, in_channels: int, embed_dim: int, patch_size: Sequence[int]) -> None:
        super().__init__()
        first = [min(size, 2) for size in patch_size]
        self.proj1 = _Convolutions(in_channels, embed_dim // 2, first, last=False)
        second = [size // done for size, done in zip(patch_size, first, strict=True)]
        self.proj2 = _Convolutions(embed_dim // 2, embed_dim, second, last=True)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.norm(channels_last(self.proj2(self.proj1(image))))


class _PatchMerging(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduction = nn.Conv3d(channels, 2 * channels, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(channels)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return channels_last(self.reduction(channels_first(self.norm(F.gelu(tokens)))))


class _Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2 * channels)
        self.up = nn.ConvTranspose3d(2 * channels, channels, 2, 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return channels_last(self.up(channels_first(self.norm(tokens))))


class _PatchExpanding(nn.Module):
    def __init__(self, channels: int, out_channels: int, patch_size: tuple[int, int, int]) -> None:
        super().__init__()
        self.up = nn.ConvTranspose3d(channels, out_channels, patch_size, patch_size)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.up(channels_first(tokens))


class _MLP(nn.Module):
    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(tokens)))


class _WindowAttention(nn.Module):
    """Attention inside windows with a learned bias for each relative position.

    ``forward(tokens (B, W, N, C), mask (W, N, N))``; with ``cross``, queries are given and used unprojected (the
    published decoder has no projection for them), and keys and values come from ``tokens``.
    """

    relative_position_index: torch.Tensor

    def __init__(self, channels: int, num_heads: int, window: int, cross: bool, legacy_rel_index: bool) -> None:
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"{channels} channels cannot be shared among {num_heads} heads.")
        self.num_heads = num_heads
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 3, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        # Not in the state dict: it follows from the arguments.
        index = relative_position_index(window, legacy_rel_index)
        self.register_buffer("relative_position_index", index, persistent=False)
        if cross:
            self.kv = nn.Linear(channels, 2 * channels)
        else:
            self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(
        self, tokens: torch.Tensor, mask: torch.Tensor | None, query: torch.Tensor | None = None
    ) -> torch.Tensor:
        batch, windows, count, channels = tokens.shape
        projected = self.qkv(tokens) if query is None else torch.cat((query, self.kv(tokens)), dim=-1)
        projected = projected.view(batch * windows, count, 3, self.num_heads, channels // self.num_heads)
        q, k, v = projected.permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        attended = window_attention(q, k, v, bias, mask)
        return self.proj(attended.transpose(1, 2).reshape(batch, windows, count, channels))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        given = state_dict.pop(f"{prefix}relative_position_index", None)  # published checkpoints carry it
        if given is not None and not torch.equal(given.cpu(), self.relative_position_index.cpu()):
            errors: list[str] = args[-1]
            errors.append(
                f"{prefix}relative_position_index numbers relative positions as the published code does, which "
                "these weights were trained with: build the network with legacy_rel_index=True."
            )
        super()._load_from_state_dict(state_dict, prefix, *args)


class _Block(nn.Module):
    """Swin block on tokens (B, d, h, w, C), with windows shifted by ``shift`` tokens.

    The mask of the shifted windows is kept for ``grid`` and computed again for other grids.
    """

    cross = False
    mask: torch.Tensor | None

    def __init__(
        self,
        channels: int,
        num_heads: int,
        window: int,
        shift: int,
        mlp_ratio: float,
        drop_path: float,
        legacy_rel_index: bool,
        grid: Sequence[int],
    ) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.padded = self._padded(grid)
        # Not in the state dict: it follows from the arguments.
        mask = shift_mask(self.padded, window, shift) if shift else None
        self.register_buffer("mask", mask, persistent=False)
        self.norm1 = nn.LayerNorm(channels)
        self.attn = _WindowAttention(channels, num_heads, window, self.cross, legacy_rel_index)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = _MLP(channels, int(channels * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self._residual(tokens, self._attend(self.norm1(tokens)))

    def _residual(self, tokens: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        tokens = tokens + self.drop_path(attended)
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))

    def _attend(self, tokens: torch.Tensor, query: torch.Tensor | None = None) -> torch.Tensor:
        grid = tokens.shape[1:4]
        padded = self._padded(grid)
        windows = self._windows(tokens, padded)
        queries = None if query is None else self._windows(query, padded)
        mask = self.mask
        if self.shift and padded != self.padded:
            mask = shift_mask(padded, self.window, self.shift, tokens.device)
        attended = self.attn(windows, mask, queries)
        return self._grid(attended, padded)[:, : grid[0], : grid[1], : grid[2]]

    def _padded(self, grid: Sequence[int]) -> list[int]:
        return [math.ceil(size / self.window) * self.window for size in grid]

    def _windows(self, tokens: torch.Tensor, padded: Sequence[int]) -> torch.Tensor:
        grid = tokens.shape[1:4]
        if list(grid) != list(padded):
            pad = [size - given for size, given in zip(padded, grid, strict=True)]
            tokens = F.pad(tokens, (0, 0, 0, pad[2], 0, pad[1], 0, pad[0]))
        if self.shift:
            tokens = tokens.roll((-self.shift,) * 3, dims=(1, 2, 3))
        return partition(tokens, self.window)

    def _grid(self, windows: torch.Tensor, padded: Sequence[int]) -> torch.Tensor:
        d, h, w = (size // self.window for size in padded)
        # Not `unflatten`, here and below: behind it torch's older exporter to ONNX fixes the batch.
        tokens = windows.reshape(-1, d, h, w, *(self.window,) * 3, windows.shape[-1])
        tokens = tokens.permute(0, 1, 4, 2, 5, 3, 6, 7).flatten(5, 6).flatten(3, 4).flatten(1, 2)
        return tokens.roll((self.shift,) * 3, dims=(1, 2, 3)) if self.shift else tokens


class _CrossBlock(_Block):
    """First block of a decoder stage: queries from the upsampled tokens, keys and values from the skip."""

    cross = True

    def forward(self, tokens: torch.Tensor, up: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return self._residual(tokens, self._attend(self.norm1(skip), self.norm1(up)))


def channels_last(map: torch.Tensor) -> torch.Tensor:
    """(B, C, d, h, w) -> (B, d, h, w, C), a view of a channels_last_3d tensor."""
    return map.permute(0, 2, 3, 4, 1)


def channels_first(tokens: torch.Tensor) -> torch.Tensor:
    """(B, d, h, w, C) -> (B, C, d, h, w), in channels_last_3d."""
    return tokens.permute(0, 4, 1, 2, 3)


def grid_of(size: Sequence[int], stride: Sequence[int]) -> tuple[int, ...]:
    return tuple(voxels // step for voxels, step in zip(size, stride, strict=True))


def partition(tokens: torch.Tensor, window: int) -> torch.Tensor:
    """Tokens (B, d, h, w, C) in windows (B, number, window^3, C), both in row-major order."""
    d, h, w = (size // window for size in tokens.shape[1:4])
    tokens = tokens.reshape(-1, d, window, h, window, w, window, tokens.shape[-1])
    return tokens.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4, 6).flatten(1, 3)


def shift_mask(grid: Sequence[int], window: int, shift: int, device: torch.device | str | None = None) -> torch.Tensor:
    """0 between tokens of a shifted window that are neighbours in the grid, ``MASKED`` between others: (W, N, N)."""
    region = torch.zeros(1, *grid, 1, device=device)
    for axis, size in enumerate(grid, start=1):
        steps = torch.zeros(size, device=device)
        steps[-window:] = 1
        steps[-shift:] = 2
        region = region * 3 + steps.view([-1 if a == axis else 1 for a in range(5)])
    region = partition(region, window)[0, :, :, 0]
    return (region[:, None] != region[:, :, None]).float() * MASKED


def relative_position_index(window: int, legacy: bool = False) -> torch.Tensor:
    """Row of the bias table for each pair of tokens of a window, (window^3, window^3)."""
    axes = torch.arange(window)
    places = torch.stack(torch.meshgrid(axes, axes, axes, indexing="ij")).flatten(1)
    offset = places[:, :, None] - places[:, None] + window - 1
    first = 3 * window - 1 if legacy else (2 * window - 1)
    # Published: (3W - 1) * s + (2W - 1) * h + w; a number of base 2W - 1 has (2W - 1)^2 in front of s.
    return offset[0] * (first if legacy else first**2) + offset[1] * (2 * window - 1) + offset[2]


def _window(grid: Sequence[int], window: int) -> tuple[int, int]:
    """Window and shift of a stage: one window without shift if the grid is no larger than the window."""
    return (min(grid), 0) if min(grid) <= window else (window, window // 2)


def _warn_of_unfilled_windows(grid: Sequence[int], window: int, wanted: int, stride: Sequence[int]) -> None:
    """Say so if the deepest grid does not fill windows of 4, of which finer grids are multiples then."""
    tokens = " x ".join(map(str, grid))
    if window < min(wanted, 4):
        logger.warning(
            "nnFormer's deepest grid of %s tokens is smaller than its windows of %d, so a token attends to %d in place "
            "of %d: set roi_size to %s or more, or take a network with smaller strides.",
            tokens,
            wanted,
            window**3,
            wanted**3,
            [min(wanted, 4) * step for step in stride],
        )
    elif any(side % window for side in grid):
        logger.warning(
            "nnFormer pads its deepest grid of %s tokens with zeros to windows of %d, which tells tokens where they "
            "lie: set roi_size to multiples of %s.",
            tokens,
            window,
            [window * step for step in stride],
        )
