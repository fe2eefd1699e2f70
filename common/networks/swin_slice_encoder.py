from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from monai.networks.nets.swin_unetr import PatchMergingV2, SwinTransformerBlock, get_window_size
from torch import nn
from torch.nn import functional as F

from .foreign import Kind, Source, State, count
from .slice_encoder import SliceEmbedding, SliceEncoder, initialise
from .slice_names import HEADS, IMAGENET
from .stages import depth_rates
from .window_attention import shifted_window_mask

__all__ = ["CHECKPOINTS", "SwinSliceEncoder", "VideoSwinEncoder"]


LAYERS = (r"(?:patch_embedding|video_embedding|patch_norm)\.", r"(?:stages|mergings|norms)\.(\d+)\.")
"""Layers of both encoders below: a stage goes with the norm of its map and the step to the next."""


class SwinSliceEncoder(SliceEncoder):
    """Swin transformer [1] on windows of K neighbouring slices [2, section 3.3].

    Blocks and merging are MONAI's. Those of ``transformers`` drop residual branches of the attention only, not of the
    MLP, and after a small image keep its smaller window for all later images. Each map passes a separate layer norm, as
    usual for Swin as a backbone for segmentation.

    Args:
        in_channels, img_size, slices, patch_size: see ``SliceEncoder``.
        embed_dim: channels of the first map; they double from map to map.
        depths, num_heads: blocks and heads of each stage; those of Swin-B by default.
        window_size: side of a window of attention, in tokens.
        drop_path: rate of dropped residual branches at the last block, growing linearly from 0; 0.3 in [2]'s code.

    Maps: one per stage, (B, embed_dim * 2^i, H/(p 2^i), W/(p 2^i), n), with the strides (p 2^i, p 2^i, 1); sides are
    rounded up.

    Raises:
        ValueError: a stage has fewer tokens along an axis than a window, since the image is too small.

    References:
        - [1] Liu et al., Swin Transformer, ICCV 2021.
        - [2] Zhang et al., Adapting Pre-trained Vision Transformers from 2D to 3D through Weight Inflation Improves
          Medical Image Segmentation, ML4H 2022.
    """

    fresh_weights: ClassVar[dict[str, str]] = {
        "norms of maps": r"^norms\."
    }  # a Swin that was trained to classify has none
    layer_names: ClassVar[tuple[str, ...]] = LAYERS

    def __init__(
        self,
        in_channels: int,
        img_size: Sequence[int],
        slices: int = 5,
        patch_size: int = 4,
        embed_dim: int = 128,
        depths: Sequence[int] = (2, 2, 18, 2),
        num_heads: Sequence[int] = (4, 8, 16, 32),
        window_size: int = 7,
        drop_path: float = 0.3,
    ) -> None:
        super().__init__(in_channels, img_size, slices, patch_size)
        check_windows(self.grid, len(depths), window_size)
        self.channels, self.strides = pyramid(embed_dim, patch_size, len(depths))
        self.patch_embedding = SliceEmbedding(in_channels, embed_dim, patch_size, slices)
        self.patch_norm = nn.LayerNorm(embed_dim)
        self.stages = swin_stages(embed_dim, depths, num_heads, (window_size, window_size), drop_path)
        self.mergings = nn.ModuleList(PatchMergingV2(width, spatial_dims=2) for width in self.channels[:-1])
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in self.channels)
        self._masks: dict[tuple, torch.Tensor] = {}
        initialise(self)

    def slice_maps(self, image: torch.Tensor) -> list[torch.Tensor]:
        tokens = self.patch_norm(self.patch_embedding(self.padded(image)).movedim(1, 3))
        maps = []
        for stage, (blocks, norm) in enumerate(zip(self.stages, self.norms, strict=True)):
            tokens = run_blocks(blocks, tokens, self._masks)
            maps.append(norm(tokens).movedim(3, 1))
            if stage < len(self.mergings):
                tokens = self.mergings[stage](tokens)
        return maps

    def architecture(self) -> dict:
        """What an encoder file records of the network: name and arguments."""
        return {
            "name": "SwinSliceEncoder",
            "in_channels": self.in_channels,
            "patch_size": self.patch_size,
            "slices": self.slices,
            "embed_dim": self.channels[0],
        } | stages_architecture(self.stages)


class VideoSwinEncoder(SliceEncoder):
    """Video Swin transformer [1] on windows of K neighbouring slices [2].

    It has a 3-D patch embedding of two slices, tokens also attend along the slices, and the middle frame of each map is
    returned. A window of 5 slices, continued by a slice of zeros, gives three frames of tokens; the second is returned.
    Since it was trained on videos, its patch embedding already has a depth and is not inflated. The K slices are not
    embedded in one step, and the windows of a run of slices are cut out.

    Args:
        in_channels, img_size, slices, patch_size: see ``SliceEncoder``.
        embed_dim, depths, num_heads: as for ``SwinSliceEncoder``; Swin-B by default.
        frame_size: slices of a patch.
        window_size: tokens of a window of attention along slices, rows and columns.
        drop_path: 0.2 in [2]'s code.

    Maps and errors: as those of ``SwinSliceEncoder``. The maps are not normalised, as in the published code of [2].

    References:
        - [1] Liu et al., Video Swin Transformer, CVPR 2022.
        - [2] Zhang et al., Adapting Pre-trained Vision Transformers from 2D to 3D through Weight Inflation Improves
          Medical Image Segmentation, ML4H 2022, section 4.3.
    """

    layer_names: ClassVar[tuple[str, ...]] = LAYERS

    def __init__(
        self,
        in_channels: int,
        img_size: Sequence[int],
        slices: int = 5,
        patch_size: int = 4,
        embed_dim: int = 128,
        depths: Sequence[int] = (2, 2, 18, 2),
        num_heads: Sequence[int] = (4, 8, 16, 32),
        frame_size: int = 2,
        window_size: Sequence[int] = (8, 7, 7),
        drop_path: float = 0.2,
    ) -> None:
        super().__init__(in_channels, img_size, slices, patch_size)
        check_windows(self.grid, len(depths), max(window_size[1:]))
        self.channels, self.strides = pyramid(embed_dim, patch_size, len(depths))
        self.frame_size = frame_size
        # The axes of the published weights: slices, rows, columns.
        kernel = (frame_size, patch_size, patch_size)
        self.video_embedding = nn.Conv3d(in_channels, embed_dim, kernel, kernel)
        self.patch_norm = nn.LayerNorm(embed_dim)
        self.stages = swin_stages(embed_dim, depths, num_heads, tuple(window_size), drop_path)
        self.mergings = nn.ModuleList(PatchMergingV2(width, spatial_dims=2) for width in self.channels[:-1])
        self._masks: dict[tuple, torch.Tensor] = {}
        initialise(self)

    def slice_maps(self, image: torch.Tensor) -> list[torch.Tensor]:
        slices = self.padded(image)
        count = slices.shape[4] - self.slices + 1
        # Not `unfold`, which torch's older exporter to ONNX knows for one number of slices only.
        windows = torch.stack([slices[..., k : k + count] for k in range(self.slices)], dim=2)  # (B, C, K, H, W, n)
        windows = windows.movedim(5, 1).flatten(0, 1)
        windows = F.pad(windows, (0, 0, 0, 0, 0, -self.slices % self.frame_size))
        tokens = self.patch_norm(self.video_embedding(windows).movedim(1, 4))  # (B n, frames, h, w, C)
        maps = []
        for stage, blocks in enumerate(self.stages):
            tokens = run_blocks(blocks, tokens, self._masks)
            maps.append(tokens[:, tokens.shape[1] // 2].movedim(3, 1))
            if stage < len(self.mergings):
                merged = self.mergings[stage](tokens.flatten(0, 1))
                tokens = merged.reshape(*tokens.shape[:2], *merged.shape[1:])
        return maps

    def architecture(self) -> dict:
        """What an encoder file records of the network: name and arguments."""
        return {
            "name": "VideoSwinEncoder",
            "in_channels": self.in_channels,
            "patch_size": self.patch_size,
            "frame_size": self.frame_size,
            "embed_dim": self.channels[0],
        } | stages_architecture(self.stages)


def pyramid(embed_dim: int, patch_size: int, stages: int) -> tuple[tuple[int, ...], tuple[tuple[int, int, int], ...]]:
    """Channels and strides of the map of each stage."""
    factors = [2**stage for stage in range(stages)]
    return tuple(embed_dim * f for f in factors), tuple((patch_size * f, patch_size * f, 1) for f in factors)


def check_windows(grid: Sequence[int], stages: int, window: int) -> None:
    smallest = [-(-side // 2 ** (stages - 1)) for side in grid]
    if min(smallest) < window:
        raise ValueError(
            f"the last stage has {smallest[0]} x {smallest[1]} tokens, fewer than a window of {window}: take larger "
            "slices (image_size) or a smaller window_size."
        )


def swin_stages(
    embed_dim: int, depths: Sequence[int], num_heads: Sequence[int], window_size: Sequence[int], drop_path: float
) -> nn.ModuleList:
    """Blocks of each stage; every second one is shifted by half a window."""
    rates = depth_rates(drop_path, sum(depths))
    stages = nn.ModuleList()
    for stage, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
        blocks = nn.ModuleList()
        for number in range(depth):
            shift = [size // 2 if number % 2 else 0 for size in window_size]
            block = SwinTransformerBlock(
                embed_dim * 2**stage, heads, window_size, shift, drop_path=rates.pop(0), use_flash_attention=True
            )
            index: Any = block.attn.relative_position_index
            block.attn.register_buffer("relative_position_index", index, persistent=False)  # no weight
            blocks.append(block)
        stages.append(blocks)
    return stages


def run_blocks(blocks: Any, tokens: torch.Tensor, masks: dict[tuple, torch.Tensor]) -> torch.Tensor:
    """Blocks of a stage on tokens (B, *grid, C). ``masks`` keeps the masks of shifted windows that were made."""
    grid = tuple(tokens.shape[1:-1])
    window: Sequence[int] = blocks[0].window_size
    key = (*grid, tokens.device)
    if key not in masks:
        used, shift = get_window_size(grid, window, [size // 2 for size in window])
        whole = [-(-side // size) * size for side, size in zip(grid, used, strict=True)]
        masks[key] = shifted_window_mask(whole, used, shift, tokens.device)
    for block in blocks:
        tokens = block(tokens, masks[key])
    return tokens


def stages_architecture(stages: Any) -> dict:
    window = list(stages[0][0].window_size)
    return {
        "depths": [len(blocks) for blocks in stages],
        "num_heads": [blocks[0].num_heads for blocks in stages],
        "window_size": window,
    }


def _network(architecture: Mapping[str, Any], state: State) -> nn.Module:
    settings = {name: value for name, value in architecture.items() if name not in ("name", "window_size")}
    stride = architecture["patch_size"] * 2 ** len(architecture["depths"])
    if architecture["name"] == "VideoSwinEncoder":
        return VideoSwinEncoder(img_size=[7 * stride] * 2, **settings)
    window = architecture["window_size"][0]
    return SwinSliceEncoder(img_size=[window * stride] * 2, window_size=window, **settings)


def _read(state: State, source: Source) -> dict[str, Any]:
    stages = count(state, r"stages\.(\d+)\.")
    mergings = sorted({int(name.split(".")[1]) for name in state if name.startswith("mergings.")})
    if mergings and mergings == list(range(1, stages)):
        # timm from 0.9 on merges patches at the start of a stage; its authors count the stage that the merging ends.
        for name in [name for name in state if name.startswith("mergings.")]:
            state[re.sub(r"\d+", lambda found: f"{int(found[0]) - 1}", name, count=1)] = state.pop(name)
    scale = next((name for name in state if name.endswith(".logit_scale")), None)
    if scale is not None:
        raise ValueError(f"it holds {scale} of Swin v2, which this kind lacks")
    for name in [name for name in state if ".attention.q_proj." in name]:
        parts = [state.pop(name.replace("q_proj", part)) for part in ("q_proj", "k_proj", "v_proj")]
        state[name.replace("attention.q_proj", "attn.qkv")] = torch.cat(parts)
    projection = state["patch_embedding.weight"]
    tables = [state[f"stages.{stage}.0.attn.relative_position_bias_table"] for stage in range(stages)]
    architecture: dict[str, Any] = {
        "name": "SwinSliceEncoder",
        "in_channels": projection.shape[1],
        "patch_size": projection.shape[-1],
        "embed_dim": projection.shape[0],
        "depths": [count(state, rf"stages\.{stage}\.(\d+)\.") for stage in range(stages)],
        "num_heads": [table.shape[1] for table in tables],
    }
    if projection.ndim == 5:
        for part in ("weight", "bias"):
            state[f"video_embedding.{part}"] = state.pop(f"patch_embedding.{part}")
        return architecture | {"name": "VideoSwinEncoder", "frame_size": projection.shape[2]}
    side = (round(len(tables[0]) ** 0.5) + 1) // 2
    return architecture | {"window_size": [side, side]}


CHECKPOINTS = {
    # Of `transformers`, of timm and of their authors (Liu et al., ICCV 2021), and Video Swin transformers (CVPR 2022),
    # which are told by a patch embedding with a depth.
    "swin": Kind(
        _network,
        _read,
        (r"layers\.0\.blocks\.0\.",),
        (
            (r"^(?:swin\.)?(?:encoder\.)?", ""),
            (r"^embeddings\.patch_embeddings\.projection\.|^patch_embed\.proj\.", "patch_embedding."),
            (r"^embeddings\.norm\.|^patch_embed\.norm\.", "patch_norm."),
            (r"^layers\.(\d+)\.downsample\.", r"mergings.\1."),
            (r"^layers\.(\d+)\.blocks\.", r"stages.\1."),
            (r"\.attention\.self\.", ".attention."),
            (r"\.attention\.query\.", ".attention.q_proj."),
            (r"\.attention\.key\.", ".attention.k_proj."),
            (r"\.attention\.value\.", ".attention.v_proj."),
            (r"\.attention\.output\.dense\.|\.attention\.o_proj\.", ".attn.proj."),
            (
                r"\.attention\.(?:relative_position_bias\.)?relative_position_bias_table$",
                ".attn.relative_position_bias_table",
            ),
            (r"\.layernorm_before\.", ".norm1."),
            (r"\.layernorm_after\.", ".norm2."),
            (r"\.intermediate\.dense\.|\.mlp\.fc1\.", ".mlp.linear1."),
            (r"\.output\.dense\.|\.mlp\.fc2\.", ".mlp.linear2."),
        ),
        HEADS | {"norms of maps": r"^(swin\.)?norm\d\.|^hidden_states_norms\."},
        fresh=("norms.",),
        images=(("tensor", "", IMAGENET),),
    )
}
"""Checkpoints of other projects that fill these encoders."""
