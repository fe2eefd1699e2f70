"""Shared parts of the tables for 2-D vision transformers (``foreign.Kind``): names, heads, normalisations."""

from __future__ import annotations

import re
from typing import Any

from .foreign import State, count

__all__ = ["HALVES", "HEADS", "IMAGENET", "RENAMES", "layers_architecture", "split_projections"]

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
HALVES = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}

# Names as `transformers` has them since version 5.24, of those of its earlier versions, which most files of the hub
# have, and of the projects' own (timm's).
RENAMES = (
    (r"^(?:beit|vit|deit|dinov2(?:_with_registers)?)\.", ""),
    (r"^(?:encoder\.)?layer\.", "layers."),
    (r"^blocks\.(?:\d+\.(?=\d))?", "layers."),  # in chunks, as DINOv2 has them where it trains on many devices
    (r"^embeddings\.patch_embeddings\.projection\.|^patch_embed\.proj\.", "patch_embedding."),
    (r"^embeddings\.(cls_token|register_tokens)$", r"\1"),
    (r"^embeddings\.position_embeddings$|^pos_embed$", "position_table"),
    (r"\.attention\.(?:attention|self)\.(query|key|value)\.", r".attention.\1."),
    (r"\.attention\.query\.", ".attention.q_proj."),
    (r"\.attention\.key\.", ".attention.k_proj."),
    (r"\.attention\.value\.", ".attention.v_proj."),
    (r"\.attention\.output\.dense\.|\.attn\.proj\.", ".attention.o_proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(?<!attention)\.output\.dense\.", ".mlp.fc2."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.gamma_([12])$|\.ls([12])\.gamma$|\.layer_scale([12])\.lambda1$", r".lambda_\1\2\3"),
    (r"\.attn\.", ".attention."),
    (r"\.attention\.([qv])_bias$", r".attention.\1_proj.bias"),
    (r"^layers\.(\d+)\..*relative_position_bias_table$", r"position_biases.\1.relative_position_bias_table"),
)

HEADS = {
    "classification head": r"^(head|classifier|fc_norm|pre_logits|cls_head)\.",
    "final norm or pooler": r"^((beit|vit|deit|swin|dinov2\w*)\.)?(norm|layernorm|pooler(\.layernorm|\.dense)?)\.",
    "mask token": r"^((beit|vit|deit|swin|dinov2\w*)\.)?(embeddings\.)?(mask_token|masked_embed)$",
    "self-supervised head or decoder": r"^(lm_head|decoder|decoder_\w+)(\.|$)",
    "segmentation or detection": r"^(decode_head|auxiliary_head|neck|rpn_head|roi_head)\.",
    "indices and masks of windows": r"\.(relative_position_index|attn_mask)$",
}


def split_projections(state: State) -> None:
    """Split timm's joint projection of queries, keys and values, in place."""
    for name in [name for name in state if re.match(r"layers\.\d+\.attention\.qkv\.(weight|bias)$", name)]:
        for part, tensor in zip("qkv", state.pop(name).chunk(3), strict=True):
            state[name.replace("qkv", f"{part}_proj")] = tensor


def layers_architecture(state: State, name: str) -> dict[str, Any]:
    """Architecture of a 2-D transformer of equal blocks.

    Raises:
        KeyError, ValueError: it has no 2-D patch embedding, or gated MLPs.
    """
    projection = state["patch_embedding.weight"]
    if projection.ndim != 4:
        raise ValueError(f"a patch embedding of shape {tuple(projection.shape)}, which is not of 2-D patches")
    up, down = (state[f"layers.0.mlp.fc{number}.weight"] for number in (1, 2))
    if up.shape != down.T.shape:
        raise ValueError(
            f"its MLPs have weights of {tuple(up.shape)} and {tuple(down.shape)}, as gated ones (SwiGLU) have, which "
            "no encoder here has"
        )
    return {
        "name": name,
        "in_channels": projection.shape[1],
        "patch_size": projection.shape[-1],
        "hidden_size": projection.shape[0],
        "mlp_dim": len(up),
        "num_layers": count(state, r"layers\.(\d+)\."),
    }
