from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import BeitConfig
from transformers.models.beit.modeling_beit import BeitLayer, BeitRelativePositionBias

from .foreign import Kind, Source, State
from .slice_encoder import SliceTransformerEncoder, initialise, to_map, to_tokens
from .slice_names import HALVES, HEADS, IMAGENET, RENAMES, layers_architecture, split_projections
from .stages import depth_rates
from .substitution import is_recorded

__all__ = ["CHECKPOINTS", "BeitEncoder", "RelativePositionBias"]


class BeitEncoder(SliceTransformerEncoder):
    """BEiT [1] on windows of K neighbouring slices [2, section 3.3]; tokens of the centre slice see K slices.

    The layers are those of ``transformers``, with the names of their weights (``layers.0.attention.q_proj.weight``).
    The bias of relative positions is computed here once per table, not at every step of an evaluation, and attention
    runs through ``scaled_dot_product_attention``. As in the published code of [2], there is no absolute position and no
    norm after the last block, and weights are drawn from a normal distribution of deviation 0.02. The last weight of a
    residual branch in block n is divided by the square root of 2 n.

    Args:
        in_channels, img_size, slices, patch_size: see ``SliceEncoder``.
        hidden_size, mlp_dim, num_layers, num_heads: sizes of the transformer; BEiT-B by default.
        out_blocks: blocks (counted from 1) to return tokens of; the published indices 3, 5, 7, 11 count from 0.
            ``BeitForSemanticSegmentation`` of ``transformers`` counts differently and returns blocks 2, 4, 6, 10.
        layer_scale: initial value of the learned scale of each residual branch; 1 in the published code of [2], 0.1 in
            [1].
        drop_path: rate of dropped residual branches at the last block, growing linearly from 0.
        norm_eps: epsilon of the layer norms.

    Maps: ``len(out_blocks)``, each (B, hidden_size, H/p, W/p, n), with the stride (p, p, 1).

    Raises:
        ValueError: ``out_blocks`` are not increasing block numbers.

    References:
        - [1] Bao et al., BEiT: BERT Pre-Training of Image Transformers, ICLR 2022.
        - [2] Zhang et al., Adapting Pre-trained Vision Transformers from 2D to 3D through Weight Inflation Improves
          Medical Image Segmentation, ML4H 2022.
    """

    layer_names: ClassVar[tuple[str, ...]] = (
        r"(?:patch_embedding|cls_token)\b",
        r"(?:layers|position_biases)\.(\d+)\.",
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
        layer_scale: float = 1.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__(in_channels, img_size, slices, patch_size, hidden_size, num_layers, out_blocks)
        config = BeitConfig(
            hidden_size=hidden_size,
            intermediate_size=mlp_dim,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            layer_norm_eps=norm_eps,
            layer_scale_init_value=layer_scale,
            use_relative_position_bias=False,  # ours is handed in as the attention mask
        )
        config._attn_implementation = "sdpa"
        rates = depth_rates(drop_path, num_layers)
        self.layers = nn.ModuleList(BeitLayer(config, drop_path_rate=rate) for rate in rates)
        self.position_biases = nn.ModuleList(RelativePositionBias(self.grid, num_heads) for _ in range(num_layers))
        initialise(self)
        # BEiT's `fix_init_weight`: what a block adds shrinks with its depth.
        with torch.no_grad():
            layer: Any
            for number, layer in enumerate(self.layers, start=1):
                for part in (layer.attention.o_proj, layer.mlp.fc2):
                    part.weight.div_(math.sqrt(2 * number))

    def slice_maps(self, image: torch.Tensor) -> list[torch.Tensor]:
        patches = self.patch_embedding(self.padded(image))
        tokens = to_tokens(patches, self.cls_token)
        maps = []
        for number, (layer, bias) in enumerate(zip(self.layers, self.position_biases, strict=True), start=1):
            tokens = layer(tokens, attention_mask=bias())
            if number in self.out_blocks:
                maps.append(to_map(tokens, patches.shape[2:]))
        return maps


class RelativePositionBias(nn.Module):
    """Bias of attention by the offset of two patches, one table for each head (BEiT, appendix).

    The table has (2 h - 1) (2 w - 1) + 3 rows: offsets, class token to patch, patch to class token, class token to
    itself. ``forward`` returns (1, heads, 1 + h w, 1 + h w). In evaluation without gradients, the result is gathered
    once and kept until the table changes.
    """

    index: torch.Tensor

    def __init__(self, grid: Sequence[int], num_heads: int) -> None:
        super().__init__()
        rows = (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3
        self.relative_position_bias_table = nn.Parameter(torch.zeros(rows, num_heads))
        # Cached, one tensor for all layers; that of a net that is made on another device must not come from there.
        with torch.device("cpu"):
            index = BeitRelativePositionBias.generate_relative_position_index(tuple(grid))
        self.register_buffer("index", index.to(self.relative_position_bias_table.device), persistent=False)
        self._kept: tuple[tuple, torch.Tensor] | None = None

    def forward(self) -> torch.Tensor:
        table = self.relative_position_bias_table
        exporting = is_recorded()
        if self.training or torch.is_grad_enabled() or exporting:
            self._kept = None
            return self._gather(table)
        # What tells that it has changed: an optimiser's or a loader's writing, or a move to another device or type.
        state = (table._version, table.data_ptr(), table.device, table.dtype)
        if self._kept is None or self._kept[0] != state:
            self._kept = (state, self._gather(table))
        return self._kept[1]

    def _gather(self, table: torch.Tensor) -> torch.Tensor:
        return table[self.index.flatten()].unflatten(0, self.index.shape).permute(2, 0, 1)[None].contiguous()


def _network(architecture: Mapping[str, Any], state: State) -> nn.Module:
    settings = {name: value for name, value in architecture.items() if name not in ("name", "grid")}
    size = [side * architecture["patch_size"] for side in architecture["grid"]]
    return BeitEncoder(img_size=size, out_blocks=[1], **settings)


def _read(state: State, source: Source) -> dict[str, Any]:
    """Read tables of relative positions: one per block, one for all blocks, or the sum of both."""
    split_projections(state)
    architecture = layers_architecture(state, "BeitEncoder")
    shared = state.pop("shared_table", None)
    if shared is not None:
        for number in range(architecture["num_layers"]):
            name = f"position_biases.{number}.relative_position_bias_table"
            state[name] = state[name] + shared if name in state else shared.clone()
    table = state["position_biases.0.relative_position_bias_table"]
    absolute = state.pop("position_table", None)
    if absolute is not None and bool(absolute.any()):
        raise ValueError("it has absolute positions beside relative ones, which the encoder lacks")
    side = (round((len(table) - 3) ** 0.5) + 1) // 2
    return architecture | {
        "grid": [side, side],
        "num_heads": table.shape[1],
        "norm_eps": 1e-6,  # what they were trained with; configurations of `transformers` state 1e-12
    }


CHECKPOINTS = {
    # Of `transformers` or of its authors (Bao et al., ICLR 2022), version 2 too (Peng et al., 2022).
    "beit": Kind(
        _network,
        _read,
        (r"\.(lambda|gamma)_1 1d", r"relative_position_bias_table ", r"(patch_embed\.proj|projection)\.weight 4d"),
        (
            (
                r"^(?:beit\.)?(?:rel_pos_bias|encoder\.relative_position_bias|shared_position_bias)"
                r"\.relative_position_bias_table$",
                "shared_table",
            ),
            *RENAMES,
        ),
        HEADS
        | {"pyramid": r"^(beit\.)?fpn\d\.", "class token's blocks of BEiT v2": r"^cls_pt_(layers|norm|lm_head)\."},
        images=(
            ("tensor", r"^(.*\.)?cls_pt_layers\.", IMAGENET),  # blocks that only BEiT v2 has while it is pre-trained
            ("model_type", r"^beit$", HALVES),  # `transformers` has no v2
            ("file", r"beit_?v2", IMAGENET),
            ("file", r"^beit_(base|large)_patch", HALVES),
        ),
    )
}
"""Checkpoints of other projects that fill a :class:`BeitEncoder`."""
