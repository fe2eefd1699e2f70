from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import ViTConfig
from transformers.models.vit.modeling_vit import ViTLayer

from .foreign import Kind, Source, State
from .slice_encoder import SliceTransformerEncoder, initialise, to_map, to_tokens
from .slice_names import HALVES, HEADS, IMAGENET, RENAMES, layers_architecture, split_projections

__all__ = ["CHECKPOINTS", "DinoEncoder"]


class DinoEncoder(SliceTransformerEncoder):
    """A plain vision transformer with absolute positions, such as DINO's [1], on windows of K neighbouring slices [2].

    The layers are those of ``transformers``, with the names of their weights. Maps, arguments and errors are as for
    ``common.networks.beit_encoder.BeitEncoder``. The code published with [2] cannot run this encoder; here it returns
    patch tokens of the same blocks as BEiT.

    DINOv2 [3] fits, too: its learned scales are folded into the linear layers before them. ``registers`` are further
    tokens without a position, beside the class token [4].

    References:
        - [1] Caron et al., Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021.
        - [2] Zhang et al., Adapting Pre-trained Vision Transformers from 2D to 3D through Weight Inflation Improves
          Medical Image Segmentation, ML4H 2022, section 3.3.
        - [3] Oquab et al., DINOv2: Learning Robust Visual Features without Supervision, TMLR 2024.
        - [4] Darcet et al., Vision Transformers Need Registers, ICLR 2024.
    """

    layer_names: ClassVar[tuple[str, ...]] = (
        r"(?:patch_embedding|cls_token|register_tokens|position_table)\b",
        r"layers\.(\d+)\.",
    )

    def __init__(
        self,
        in_channels: int,
        img_size: Sequence[int],
        slices: int = 5,
        patch_size: int = 16,
        hidden_size: int = 768,
        mlp_dim: int = 3072,
        num_layers: int = 12,
        num_heads: int = 12,
        out_blocks: Sequence[int] = (4, 6, 8, 12),
        norm_eps: float = 1e-6,
        registers: int = 0,
    ) -> None:
        super().__init__(in_channels, img_size, slices, patch_size, hidden_size, num_layers, out_blocks)
        config = ViTConfig(
            hidden_size=hidden_size,
            intermediate_size=mlp_dim,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            layer_norm_eps=norm_eps,
        )
        config._attn_implementation = "sdpa"
        self.position_table = nn.Parameter(torch.zeros(1, 1 + self.grid[0] * self.grid[1], hidden_size))
        self.register_tokens = nn.Parameter(torch.zeros(1, registers, hidden_size)) if registers else None
        self.layers = nn.ModuleList(ViTLayer(config) for _ in range(num_layers))
        initialise(self)

    def slice_maps(self, image: torch.Tensor) -> list[torch.Tensor]:
        patches = self.patch_embedding(self.padded(image))
        tokens = to_tokens(patches, self.cls_token) + self.position_table
        if self.register_tokens is not None:
            registers = self.register_tokens.expand(len(tokens), -1, -1).to(tokens.dtype)
            tokens = torch.cat((tokens[:, :1], registers, tokens[:, 1:]), dim=1)
        maps = []
        for number, layer in enumerate(self.layers, start=1):
            tokens = layer(tokens)
            if number in self.out_blocks:
                maps.append(to_map(tokens, patches.shape[2:]))
        return maps

    def architecture(self) -> dict[str, Any]:
        """Name and arguments of the network, for the record of an encoder file."""
        registers = {} if self.register_tokens is None else {"registers": self.register_tokens.shape[1]}
        return super().architecture() | registers


def _network(architecture: Mapping[str, Any], state: State) -> nn.Module:
    settings = {name: value for name, value in architecture.items() if name not in ("name", "grid")}
    size = [side * architecture["patch_size"] for side in architecture["grid"]]
    return DinoEncoder(img_size=size, out_blocks=[1], **settings | {"num_heads": 1})  # heads are a guess so far


def _read(state: State, source: Source) -> dict[str, Any]:
    split_projections(state)
    architecture = layers_architecture(state, "DinoEncoder")
    for name in [name for name in state if re.search(r"\.lambda_[12]$", name)]:
        # DINOv2's learned scales of the branches are part of the layers ahead of them from here on.
        layer = name.replace("lambda_1", "attention.o_proj").replace("lambda_2", "mlp.fc2")
        scale = state.pop(name)
        state[f"{layer}.weight"] = state[f"{layer}.weight"] * scale[:, None]
        state[f"{layer}.bias"] = state[f"{layer}.bias"] * scale
    if "register_tokens" in state:
        architecture["registers"] = state["register_tokens"].shape[1]
    table = state["position_table"]
    side = round(table.shape[1] ** 0.5)
    if side**2 == table.shape[1]:  # without one of the class token, as timm has it beside registers
        state["position_table"] = torch.cat((torch.zeros_like(table[:, :1]), table), dim=1)
    elif side**2 + 1 != table.shape[1]:
        raise ValueError("positions that are not those of a class token and a square of patches")
    return architecture | {
        "grid": [side, side],
        "num_heads": architecture["hidden_size"] // 64,  # as all published sizes have it
        "norm_eps": 1e-6,
    }


_POSITIONS = (r"(^|\.)(embeddings\.position_embeddings|pos_embed) 3d", r"(patch_embed\.proj|projection)\.weight 4d")

CHECKPOINTS = {
    # Oquab et al., 2024, with registers or without, of `transformers`, timm and its authors.
    "dinov2": Kind(
        _network,
        _read,
        (*_POSITIONS, r"(\.ls1\.gamma|\.layer_scale1\.lambda1) 1d"),
        (*RENAMES, (r"^reg_token$", "register_tokens")),
        HEADS | {"heads of its training": r"^(dino|ibot)_head\."},
        images=(("model_type", r"^dinov2", IMAGENET), ("file", r"dinov2", IMAGENET)),
    ),
    # Plain vision transformers with absolute positions: of `transformers`, timm, DINO (Caron et al., ICCV 2021).
    "vit": Kind(
        _network,
        _read,
        _POSITIONS,
        RENAMES,
        HEADS,
        images=(
            ("tensor", r"^head\.(mlp|last_layer)\.", IMAGENET),  # DINO
            ("tensor", r"(^|\.)decoder_pos_embed$", IMAGENET),  # MAE
            ("model_type", r"^(deit|vit_mae|vit_msn)$", IMAGENET),
            ("file", r"dino|deit|mae|ibot|moco", IMAGENET),
            ("file", r"augreg|in21k", HALVES),  # Google's
        ),
    ),
}
"""Checkpoints of other projects that fill a :class:`DinoEncoder`."""
