"""3-D networks of other projects, in the names of the encoders of volumes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .adapt import match_position_form
from .kind import Kind, Source, State

__all__ = ["VOLUME_KINDS", "medicalnet", "monai_mae", "monai_vit", "swin_unetr_ssl", "unetr_mae"]

_CROSS_ATTENTION = r"^(vit\.)?blocks\.\d+\.cross_attn\."
"""What MONAI's blocks held for a while and never used."""


def unetr_mae(source: Source) -> tuple[State, dict[str, Any]]:
    """Encoder of the published UNETR-MAE checkpoints (Zhang et al., BIBM 2023): timm block names, a class token,
    separable positions (``pos_embed_spatial``, ``pos_embed_temporal``, ``pos_embed_class``).
    """
    renames = (
        (r"^patch_embed\.proj\.", "patch_embedding.patch_embeddings."),
        (r"\.attn\.proj\.", ".attn.out_proj."),
        (r"\.mlp\.fc(\d)\.", r".mlp.linear\1."),
        (r"^cls_token$", "parametrizations.cls_token.original0"),
        (r"^pos_embed_class$", "parametrizations.cls_token.original1"),
        (r"^pos_embed_temporal$", "patch_embedding.parametrizations.position_embeddings.original0"),
        (r"^pos_embed_spatial$", "patch_embedding.parametrizations.position_embeddings.original1"),
    )
    keep = re.compile(r"patch_embed\.proj\.|blocks\.|norm\.|cls_token$|pos_embed_(temporal|spatial|class)$")
    converted = {f"vit.{new}": source.take(name) for new, name in source.renamed(renames).items() if keep.match(name)}
    _fill_unused_norms(converted)
    return converted, _vit_architecture(converted) | {"norm_eps": 1e-6}


def monai_mae(source: Source) -> tuple[State, dict[str, Any]]:
    """Encoder of a ``monai.networks.nets.MaskedAutoEncoderViT`` state dict.

    Its final norm is the last entry of ``blocks``; in ``ViT`` it is ``norm``.
    """
    blocks = [int(name.split(".")[1]) for name in source if re.match(r"blocks\.\d+\.norm1", name)]
    if not blocks:
        raise KeyError("blocks.0.norm1.weight")
    depth = 1 + max(blocks)
    converted = {}
    for name in source:
        if re.match(r"cls_token$|patch_embedding\.|blocks\.\d+\.(?!cross_attn\.)", name):
            converted["vit." + name.replace(f"blocks.{depth}.", "norm.")] = source.take(name)
    _fill_unused_norms(converted)
    return converted, _vit_architecture(converted) | {"norm_eps": 1e-5}


def monai_vit(source: Source) -> tuple[State, dict[str, Any]]:
    """MONAI's ``ViT``, alone, in a whole ``UNETR`` or in a ``ViTAutoEnc``."""
    keep = re.compile(r"(vit\.)?(cls_token$|patch_embedding\.|norm\.|blocks\.\d+\.(?!cross_attn\.))")
    names = source.renamed(((r"^vit\.", ""),))
    converted = {f"vit.{new}": source.take(name) for new, name in names.items() if keep.match(name)}
    _fill_unused_norms(converted)
    return converted, _vit_architecture(converted) | {"norm_eps": 1e-5}


def swin_unetr_ssl(source: Source) -> tuple[State, dict[str, Any]]:
    """Swin transformer of Swin UNETR checkpoints: the self-supervised ones of Tang et al. (CVPR 2022), old names
    (``module.layers1...mlp.fc1``) and new (``swinViT.layers1...mlp.linear1``), and whole Swin UNETR state dicts, of
    version 2 too, which has convolutions ahead of each stage (``layers1c``).
    """
    names = source.renamed(((r"^(swinViT|swin_vit)\.", ""), (r"\.mlp\.fc(\d)\.", r".mlp.linear\1.")))
    keep = re.compile(r"(patch_embed\.proj|layers\dc?)\.")
    converted = {f"swin.{new}": source.take(name) for new, name in names.items() if keep.match(new)}
    projection = converted["swin.patch_embed.proj.weight"]
    tables = [converted[f"swin.layers{stage}.0.blocks.0.attn.relative_position_bias_table"] for stage in range(1, 5)]
    side = round(len(tables[0]) ** (1 / 3))
    architecture = {
        "name": "SwinEncoder",
        "in_channels": projection.shape[1],
        "patch_size": list(projection.shape[2:]),
        "feature_size": projection.shape[0],
        "depths": [_count(converted, rf"swin\.layers{stage}\.0\.blocks\.(\d+)\.") for stage in range(1, 5)],
        "num_heads": [table.shape[1] for table in tables],
        "use_v2": any(re.match(r"swin\.layers\dc\.", name) for name in converted),
        # Names as MONAI had them only while its patch merging was the old one, such as in model_swinvit.pt.
        "patch_merging": "LegacyPatchMerging" if any(".mlp.fc1." in name for name in source) else "PatchMerging",
    }
    if side**3 == len(tables[0]):  # of a cubic window
        architecture["window_size"] = [(side + 1) // 2] * 3
    return converted, architecture


def medicalnet(source: Source) -> tuple[State, dict[str, Any]]:
    """Backbone of the published MedicalNet checkpoints (Chen et al., arXiv 1904.00625): a ``DilatedResNet``.

    Depth, shortcut and channels are read off the tensors. Counters of batches, which old PyTorch did not write, begin
    at 0.
    """
    from ..networks.dilated_resnet import BLOCKS, DilatedResNet

    keep = re.compile(r"(conv1|bn1|layer[1-4]\.\d+\..*)\.\w+$")
    converted = {name: source.take(name) for name in source if keep.match(name)}
    stem = converted["conv1.weight"]
    if stem.ndim != 5:
        raise ValueError(f"conv1.weight has the shape {tuple(stem.shape)}, which is no kernel of a 3-D convolution")
    blocks = tuple(len({n.split(".")[1] for n in converted if n.startswith(f"layer{layer}.")}) for layer in range(1, 5))
    bottleneck = "layer1.0.conv3.weight" in converted
    depths = [depth for depth, known in BLOCKS.items() if known == blocks and (depth >= 50) == bottleneck]
    if not depths:
        kind = "bottleneck" if bottleneck else "basic"
        raise ValueError(f"its layers have {blocks} {kind} blocks, as no ResNet of depth {', '.join(map(str, BLOCKS))}")
    shortcut = "B" if any(".downsample." in name for name in converted) else "A"
    with torch.device("meta"):
        net = DilatedResNet(depths[0], stem.shape[1], shortcut, width=stem.shape[0])
    for name in net.state_dict():
        if name.endswith(".num_batches_tracked"):
            converted.setdefault(name, torch.tensor(0))
    return converted, net.architecture()


def _vit(architecture: Mapping[str, Any], state: State) -> nn.Module:
    from monai.networks.nets import ViT

    from ..networks.vit_encoder import ViTEncoder

    positions = match_position_form(state, ["vit.patch_embedding.position_embeddings"])
    tokens = positions["vit.patch_embedding.position_embeddings"].shape[1]
    patch = architecture["patch_size"]
    net = ViT(
        architecture["in_channels"],
        (patch[0] * tokens, *patch[1:]),
        patch,
        architecture["hidden_size"],
        architecture["mlp_dim"],
        architecture["num_layers"],
        num_heads=1,
        qkv_bias=architecture["qkv_bias"],
    )
    if architecture["class_token"]:
        net.cls_token = nn.Parameter(torch.zeros(1, 1, architecture["hidden_size"]))
    return ViTEncoder(net, skip_blocks=[1])


def _swin(architecture: Mapping[str, Any], state: State) -> nn.Module:
    from monai.networks.nets.swin_unetr import SwinTransformer

    from ..networks.swin_encoder import SwinEncoder

    with torch.device("cpu"):  # it reads values while it is made, which the device `meta` has not
        transformer = SwinTransformer(
            architecture["in_channels"],
            architecture["feature_size"],
            architecture.get("window_size", [7, 7, 7]),
            architecture["patch_size"],
            architecture["depths"],
            architecture["num_heads"],
            use_v2=architecture["use_v2"],
        )
    return SwinEncoder(transformer)


def _dilated_resnet(architecture: Mapping[str, Any], state: State) -> nn.Module:
    from ..networks.dilated_resnet import DilatedResNet

    return DilatedResNet(**{key: value for key, value in architecture.items() if key != "name"})


def _fill_unused_norms(state: State) -> None:
    """Add the norm for cross-attention that MONAI's transformer block holds and never uses, as it starts."""
    for name in [name for name in state if name.endswith(".norm1.weight")]:
        prefix = name.removesuffix("norm1.weight") + "norm_cross_attn."
        state.setdefault(prefix + "weight", torch.ones_like(state[name]))
        state.setdefault(prefix + "bias", torch.zeros_like(state[name]))


def _vit_architecture(state: State) -> dict[str, Any]:
    projection = state["vit.patch_embedding.patch_embeddings.weight"]
    return {
        "name": "ViTEncoder",
        "in_channels": projection.shape[1],
        "patch_size": list(projection.shape[2:]),
        "hidden_size": projection.shape[0],
        "mlp_dim": state["vit.blocks.0.mlp.linear1.weight"].shape[0],
        "num_layers": _count(state, r"vit\.blocks\.(\d+)\."),
        "qkv_bias": "vit.blocks.0.attn.qkv.bias" in state,
        "class_token": any("cls_token" in name for name in state),
    }


def _count(state: State, pattern: str) -> int:
    """Blocks of a stage by their highest number, so that one left out in between is missed."""
    found = [re.match(pattern, name) for name in state]
    return 1 + max((int(match[1]) for match in found if match), default=-1)


VOLUME_KINDS = {
    "unetr_mae": Kind(
        unetr_mae,
        r"^pos_embed_spatial$",
        {
            "decoder": r"^decoder_",
            "mask token": r"^mask_token$",
            "classification head": r"^(head|fc_norm)\.",
            "timm's positions of images": r"^pos_embed$",
        },
        _vit,
    ),
    "monai_mae": Kind(
        monai_mae,
        r"^mask_tokens$",
        {"decoder": r"^decoder_", "mask token": r"^mask_tokens$", "unused attention": _CROSS_ATTENTION},
        _vit,
    ),
    "monai_vit": Kind(
        monai_vit,
        r"^(vit\.)?patch_embedding\.patch_embeddings\.weight$",
        {
            "UNETR's convolutions": r"^(encoder[1-4]|decoder[2-5]|out)\.",
            "ViTAutoEnc's decoder": r"^conv3d_transpose(_1)?\.",
            "classification head": r"^(vit\.)?classification_head\.",
            "unused attention": _CROSS_ATTENTION,
        },
        _vit,
    ),
    "swin_unetr_ssl": Kind(
        swin_unetr_ssl,
        r"layers1\.0\.blocks\.0\.attn\.qkv",
        {
            "Swin UNETR's convolutions": r"^(encoder\d+|decoder\d|out)\.",
            "self-supervised heads": r"^(rotation|contrastive)_(head|pre)\.|^(conv|convTrans3d)\.",
            "final norm": r"^((swinViT|swin_vit)\.)?norm\.",
            "heads of the Universal Model": r"^(organ_embedding$|(text_to_vision|precls_conv|GAP|controller)\.)",
        },
        _swin,
    ),
    "medicalnet": Kind(
        medicalnet,
        r"^layer1\.0\.conv1\.weight$",
        {"segmentation or classification": r"^(conv_seg|fc)\."},
        _dilated_resnet,
    ),
}
"""Kinds of 3-D checkpoints by their names."""
