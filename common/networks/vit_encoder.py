from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from monai.networks.nets import ViT
from torch import nn

from .foreign import HEADS, Kind, Source, State, count, move

__all__ = ["CHECKPOINTS", "ViTEncoder"]


class ViTEncoder(nn.Module):
    """MONAI's ``ViT`` as an encoder: tokens of chosen blocks, folded back onto the token grid.

    It is a view, not a copy: it holds the module of a segmentation net itself, so training one trains the other.

    Args:
        vit: the transformer, such as ``UNETR(...).vit``.
        skip_blocks: blocks (counted from 1) to return before the final normalised tokens. By default a quarter, a half
            and three quarters of the depth: z3, z6, z9 of a 12-block UNETR (Hatamizadeh et al., 2022).

    ``forward(image (B, C, D, H, W))`` returns ``len(skip_blocks) + 1`` maps (B, hidden, D/p, H/p, W/p), all with the
    patch size p as stride. A class token is dropped.

    Raises:
        ValueError: ``skip_blocks`` are not increasing block numbers, the ViT is not 3-D, or its patch embedding is not
            a convolution.
    """

    fresh_weights: ClassVar[dict[str, str]] = {"decoder": r"^(en|de)coder\d+\."}  # of `UNETREncoder`
    spare_weights = fresh_weights | {HEADS: r"^out\.", "classification head": r"^vit\.classification_head\."}
    layer_names: ClassVar[tuple[str, ...]] = (
        r"vit\.(?:patch_embedding|cls_token|parametrizations)\b",
        r"vit\.blocks\.(\d+)\.",
        r"vit\.norm\.",
    )

    def __init__(self, vit: ViT, skip_blocks: Sequence[int] | None = None) -> None:
        super().__init__()
        self.vit = vit
        depth = len(vit.blocks)
        skips = tuple(skip_blocks or (round(depth * quarter / 4) for quarter in (1, 2, 3)))
        if list(skips) != sorted(set(skips)) or not 1 <= skips[0] <= skips[-1] <= depth:
            raise ValueError(f"skip_blocks must be increasing block numbers in 1..{depth}, not {list(skips)}.")
        self.skip_blocks = skips
        embedding = vit.patch_embedding.patch_embeddings
        if not isinstance(embedding, nn.Conv3d):
            raise ValueError("ViTEncoder needs a 3-D ViT with a convolution as patch embedding (proj_type='conv').")
        self.patch_size = tuple(embedding.kernel_size)
        self.in_channels = embedding.in_channels
        self.hidden_size = embedding.out_channels
        maps = len(self.skip_blocks) + 1
        self.channels = (self.hidden_size,) * maps
        self.strides = (self.patch_size,) * maps

    @property
    def has_class_token(self) -> bool:
        return hasattr(self.vit, "cls_token")

    def grid(self, spatial_size: Sequence[int]) -> tuple[int, ...]:
        """Tokens per axis for an image of ``spatial_size`` voxels."""
        if any(size % patch for size, patch in zip(spatial_size, self.patch_size, strict=True)):
            raise ValueError(
                f"image size {tuple(spatial_size)} is not a multiple of the patch size {self.patch_size}: set roi_size "
                "to such a size, and image_size to at least that."
            )
        return tuple(size // patch for size, patch in zip(spatial_size, self.patch_size, strict=True))

    def embed(self, image: torch.Tensor) -> torch.Tensor:
        """Patch embedding with positions, (B, C, D, H, W) -> (B, L, hidden), tokens in row-major grid order."""
        self.check_size(image)
        return self.vit.patch_embedding(image)

    def check_size(self, image: torch.Tensor) -> None:
        """Refuse images of another size than the ViT was built for."""
        grid, tokens = self.grid(image.shape[2:]), self.vit.patch_embedding.position_embeddings.shape[1]
        if grid[0] * grid[1] * grid[2] != tokens:
            raise ValueError(
                f"an image of {tuple(image.shape[2:])} voxels gives {grid} tokens, but the ViT was built for "
                f"{tokens}; set roi_size (img_size of the network) to the size of the crops."
            )

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        tokens = self.embed(image)
        if self.has_class_token:
            tokens = torch.cat((self.vit.cls_token.expand(len(tokens), -1, -1), tokens), dim=1)
        maps = []
        for number, block in enumerate(self.vit.blocks, start=1):
            tokens = block(tokens)
            if number in self.skip_blocks:
                maps.append(tokens)
        maps.append(self.vit.norm(tokens))
        grid = self.grid(image.shape[2:])
        first = int(self.has_class_token)
        return [tokens[:, first:].transpose(1, 2).unflatten(2, grid) for tokens in maps]

    def architecture(self) -> dict:
        """What an encoder file records of the network: name and arguments."""
        block: Any = self.vit.blocks[0]
        return {
            "name": "ViTEncoder",
            "in_channels": self.in_channels,
            "patch_size": list(self.patch_size),
            "tokens": self.vit.patch_embedding.position_embeddings.shape[1],
            "hidden_size": self.hidden_size,
            "mlp_dim": block.mlp.linear1.out_features,
            "num_layers": len(self.vit.blocks),
            "num_heads": block.attn.num_heads,
            "qkv_bias": block.attn.qkv.bias is not None,
            "class_token": self.has_class_token,
            "norm_eps": self.vit.norm.eps,
        }


def _network(architecture: Mapping[str, Any], state: State) -> nn.Module:
    position = "vit.patch_embedding.position_embeddings"
    if position in state:
        tokens = state[position].shape[1]
    else:  # a sum of positions along and across the slices
        parts = position.replace("position_", "parametrizations.position_") + ".original"
        tokens = state[parts + "0"].shape[1] * state[parts + "1"].shape[1]
    patch = architecture["patch_size"]
    net = ViT(
        architecture["in_channels"],
        (patch[0] * tokens, *patch[1:]),
        patch,
        architecture["hidden_size"],
        architecture["mlp_dim"],
        architecture["num_layers"],
        num_heads=1,  # no weight tells it
        qkv_bias=architecture["qkv_bias"],
    )
    if architecture["class_token"]:
        net.cls_token = nn.Parameter(torch.zeros(1, 1, architecture["hidden_size"]))
    return ViTEncoder(net, skip_blocks=[1])


def _read(norm_eps: float) -> Any:
    def read(state: State, source: Source) -> dict[str, Any]:
        for name in [name for name in state if name.endswith(".norm1.weight")]:
            # The norm for cross-attention that MONAI's block holds and never uses, as it starts.
            prefix = name.removesuffix("norm1.weight") + "norm_cross_attn."
            state.setdefault(prefix + "weight", torch.ones_like(state[name]))
            state.setdefault(prefix + "bias", torch.zeros_like(state[name]))
        projection = state["vit.patch_embedding.patch_embeddings.weight"]
        return {
            "name": "ViTEncoder",
            "in_channels": projection.shape[1],
            "patch_size": list(projection.shape[2:]),
            "hidden_size": projection.shape[0],
            "mlp_dim": state["vit.blocks.0.mlp.linear1.weight"].shape[0],
            "num_layers": count(state, r"vit\.blocks\.(\d+)\."),
            "num_heads": None,  # no weight tells it
            "qkv_bias": "vit.blocks.0.attn.qkv.bias" in state,
            "class_token": any("cls_token" in name for name in state),
            "norm_eps": norm_eps,
        }

    return read


def _read_mae(state: State, source: Source) -> dict[str, Any]:
    """Move the final norm of MONAI's ``MaskedAutoEncoderViT``, which is the last entry of ``blocks``."""
    blocks = count(state, r"vit\.blocks\.(\d+)\.norm1")
    if not blocks:
        raise KeyError("blocks.0.norm1.weight")
    move(state, f"vit.blocks.{blocks}.", "vit.norm.")
    return _read(1e-5)(state, source)


def _read_vit3d(state: State, source: Source) -> dict[str, Any]:
    """Fold branch scales and the class token's position, which MONAI's ViT lacks, into other tensors."""
    for name in [name for name in state if re.search(r"\.ls[12]\.gamma$", name)]:
        layer = name.replace("ls1.gamma", "attn.out_proj").replace("ls2.gamma", "mlp.linear2")
        scale = state.pop(name)
        state[f"{layer}.weight"] = state[f"{layer}.weight"] * scale[:, None]
        state[f"{layer}.bias"] = state[f"{layer}.bias"] * scale
    table = "vit.patch_embedding.position_embeddings"
    if "vit.cls_token" in state:
        state["vit.cls_token"] = state["vit.cls_token"] + state[table][:, :1]
        state[table] = state[table][:, 1:]
    return _read(1e-6)(state, source)


_UNUSED_ATTENTION = {"unused attention": r"^(vit\.)?blocks\.\d+\.cross_attn\."}
"""Tensors that MONAI's blocks held in some versions and never used."""

BMMAE = ("t1", "t1ce", "t2", "flair")
"""Kinds of images that BM-MAE has a patch embedding each for."""


def _bmmae(image: str) -> Kind:
    """BM-MAE's transformer on one kind of images, of MONAI's blocks, with that kind's patch embedding."""
    names = ", ".join(f"bmmae_{one}" for one in BMMAE)
    others = "|".join(one for one in BMMAE if one != image)
    return Kind(
        _network,
        _read(1e-5),
        tuple(rf"^tokenizers\.{one}\.patch_embedding\.patch_embeddings\.weight 5d" for one in BMMAE),
        ((rf"^tokenizers\.{image}\.", ""), (r"^", "vit.")),
        {
            "patch embeddings of other images": rf"^tokenizers\.({others})\.",
            "decoder": r"^decoder\.",
            "classification head": r"^output_layer\.",
        }
        | _UNUSED_ATTENTION,
        doubt=lambda tensors, file: (
            f"is BM-MAE, with a patch embedding for each of {', '.join(BMMAE)}: give the --kind of your images, one of "
            f"{names}"
        ),
    )


CHECKPOINTS = {
    # Zhang et al., BIBM 2023: timm's names, a class token, positions along and across the slices.
    "unetr_mae": Kind(
        _network,
        _read(1e-6),
        (r"^pos_embed_spatial ",),
        (
            (r"^patch_embed\.proj\.", "patch_embedding.patch_embeddings."),
            (r"\.attn\.proj\.", ".attn.out_proj."),
            (r"\.mlp\.fc(\d)\.", r".mlp.linear\1."),
            (r"^cls_token$", "parametrizations.cls_token.original0"),
            (r"^pos_embed_class$", "parametrizations.cls_token.original1"),
            (r"^pos_embed_temporal$", "patch_embedding.parametrizations.position_embeddings.original0"),
            (r"^pos_embed_spatial$", "patch_embedding.parametrizations.position_embeddings.original1"),
            (r"^", "vit."),
        ),
        {
            "decoder": r"^decoder_",
            "mask token": r"^mask_token$",
            "classification head": r"^(head|fc_norm)\.",
            "timm's positions of images": r"^pos_embed$",
        },
    ),
    "monai_mae": Kind(
        _network,
        _read_mae,
        (r"^mask_tokens ",),
        ((r"^", "vit."),),
        {"decoder": r"^decoder_", "mask token": r"^mask_tokens$"} | _UNUSED_ATTENTION,
    ),
    # MONAI's `ViT`, alone, in a whole `UNETR` or in a `ViTAutoEnc`.
    "monai_vit": Kind(
        _network,
        _read(1e-5),
        (r"^(vit\.)?patch_embedding\.patch_embeddings\.weight 5d",),
        ((r"^(vit\.)?", "vit."),),
        {
            "UNETR's convolutions": r"^(encoder[1-4]|decoder[2-5]|out)\.",
            "ViTAutoEnc's decoder": r"^conv3d_transpose(_1)?\.",
            "classification head": r"^(vit\.)?classification_head\.",
        }
        | _UNUSED_ATTENTION,
    ),
    # Vision transformers of volumes in timm's names, such as 3DINO's (Xu et al., 2025), which has DINOv2's scales.
    "vit3d": Kind(
        _network,
        _read_vit3d,
        (r"^pos_embed 3d", r"^patch_embed\.proj\.weight 5d", r"^blocks\.(\d+\.)?0\.attn\.qkv\.weight 2d"),
        (
            (r"^patch_embed\.proj\.", "patch_embedding.patch_embeddings."),
            (r"^pos_embed$", "patch_embedding.position_embeddings"),
            (r"^blocks\.(?:\d+\.(?=\d))?", "blocks."),
            (r"\.attn\.proj\.", ".attn.out_proj."),
            (r"\.mlp\.fc(\d)\.", r".mlp.linear\1."),
            (r"^", "vit."),
        ),
        {
            "classification head": r"^(head|fc_norm)\.",
            "mask token": r"^mask_token$",
            "heads of its training": r"^(dino|ibot)_head\.",
            "decoder": r"^decoder_",
        },
    ),
    # Robinet et al., 2025 (arXiv 2505.00568).
    **{f"bmmae_{image}": _bmmae(image) for image in BMMAE},
}
"""Checkpoints of other projects that fill a :class:`ViTEncoder`."""
