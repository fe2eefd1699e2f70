"""2-D vision transformers of other projects, in the names of the encoders of slices, and their inflation."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .adapt import adapt_channels
from .inflate import (
    fold_normalization,
    inflate_depth,
    resample_grid_positions,
    resample_relative_positions,
)
from .kind import Kind, Source, State

__all__ = ["IMAGE_KINDS", "beit", "inflate", "read_folder", "source_normalisation", "swin", "vit"]

HUB_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of the file of weights in a folder of the hub."""

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
HALVES = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}

# Names as `transformers` has them since version 5.24, of those of its earlier versions, which most files of the hub
# have, and of the projects' own (timm's).
_LAYER = (
    (r"^(?:beit|vit|deit)\.", ""),
    (r"^encoder\.layer\.", "layers."),
    (r"^blocks\.", "layers."),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embedding."),
    (r"^patch_embed\.proj\.", "patch_embedding."),
    (r"^embeddings\.cls_token$", "cls_token"),
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
    (r"\.gamma_([12])$", r".lambda_\1"),
    (r"\.attn\.", ".attention."),
    (r"^layers\.(\d+)\..*relative_position_bias_table$", r"position_biases.\1.relative_position_bias_table"),
)
_KEPT = re.compile(
    r"(cls_token|position_table|patch_embedding\.(weight|bias))$|position_biases\.\d+\.|"
    r"layers\.\d+\.(attention\.[qkvo]_proj\.|mlp\.fc[12]\.|layernorm_(before|after)\.|lambda_[12]$)"
)
_SHARED_TABLE = re.compile(
    r"^(rel_pos_bias|encoder\.relative_position_bias|shared_position_bias)\.relative_position_bias_table$"
)
_STAGE = (
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
    (r"\.attention\.(?:relative_position_bias\.)?relative_position_bias_table$", ".attn.relative_position_bias_table"),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.intermediate\.dense\.|\.mlp\.fc1\.", ".mlp.linear1."),
    (r"\.output\.dense\.|\.mlp\.fc2\.", ".mlp.linear2."),
)
_KEPT_STAGE = re.compile(
    r"(patch_embedding|patch_norm)\.(weight|bias)$|mergings\.\d+\.|"
    r"stages\.\d+\.\d+\.(norm[12]\.|mlp\.linear[12]\.|attn\.(qkv|proj)\.|attn\.relative_position_bias_table$)"
)


def beit(source: Source) -> tuple[State, dict[str, Any]]:
    """BEiT of ``transformers`` or of its authors (Bao et al., ICLR 2022), version 2 too (Peng et al., 2022), with
    tables of relative positions of each block, one for all of them, or both, which are added.

    Raises:
        ValueError: a tensor that BEiT has not, or absolute positions.
    """
    converted = _layers(source)
    shared = converted.pop("shared_table", None)
    numbers = sorted({int(name.split(".")[1]) for name in converted if name.startswith("layers.")})
    if shared is not None:
        for name in (f"position_biases.{n}.relative_position_bias_table" for n in numbers):
            converted[name] = converted[name] + shared if name in converted else shared.clone()
    table = converted["position_biases.0.relative_position_bias_table"]
    absolute = converted.pop("position_table", None)
    if absolute is not None and bool(absolute.any()):
        raise ValueError("it has absolute positions beside relative ones, which the encoder has not")
    side = (round((len(table) - 3) ** 0.5) + 1) // 2
    return converted, _architecture(converted, "BeitEncoder") | {
        "grid": [side, side],
        "num_heads": table.shape[1],
        "norm_eps": 1e-6,  # what they were trained with; configurations of `transformers` state 1e-12
    }


def vit(source: Source) -> tuple[State, dict[str, Any]]:
    """Plain vision transformers with absolute positions: of ``transformers``, timm, DINO (Caron et al., ICCV 2021).

    Raises:
        ValueError: a tensor that they have not, such as DINOv2's layer scales, or positions that are not those of a
            class token and a square of patches.
    """
    converted = _layers(source)
    scale = next((name for name in converted if re.search(r"\.lambda_|^position_biases|^shared_table", name)), None)
    if scale is not None:
        raise ValueError(f"it holds {scale}, as we call it, which a plain ViT has not")
    side = round((converted["position_table"].shape[1] - 1) ** 0.5)
    if side**2 + 1 != converted["position_table"].shape[1]:
        raise ValueError("positions that are not those of a class token and a square of patches")
    hidden = converted["patch_embedding.weight"].shape[0]
    return converted, _architecture(converted, "DinoEncoder") | {
        "grid": [side, side],
        "num_heads": hidden // 64,  # as all published sizes have it
        "norm_eps": 1e-6,
    }


def swin(source: Source) -> tuple[State, dict[str, Any]]:
    """Swin transformers of ``transformers``, of timm and of their authors (Liu et al., ICCV 2021), and their Video Swin
    transformers (CVPR 2022), which are told by a patch embedding with a depth.

    Raises:
        ValueError: a tensor that they have not, such as Swin v2's logit scales.
    """
    names = _merging_ends_its_stage(source.renamed(_STAGE))
    converted = {name: source.take(old) for name, old in names.items() if _KEPT_STAGE.match(name)}
    joint = re.compile(r"stages\..*\.attention\.[qkv]_proj\.")
    apart = {name: source.take(old) for name, old in names.items() if joint.match(name)}
    source.left_out()
    for name in (name for name in apart if ".q_proj." in name):
        parts = [apart[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
        converted[name.replace("attention.q_proj", "attn.qkv")] = torch.cat(parts)
    projection = converted["patch_embedding.weight"]
    blocks = [name.split(".")[1:3] for name in converted if name.startswith("stages.")]
    stages = range(1 + max(int(stage) for stage, _ in blocks))
    tables = [converted[f"stages.{stage}.0.attn.relative_position_bias_table"] for stage in stages]
    architecture: dict[str, Any] = {
        "name": "SwinSliceEncoder",
        "in_channels": projection.shape[1],
        "patch_size": projection.shape[-1],
        "embed_dim": projection.shape[0],
        "depths": [1 + max(int(number) for s, number in blocks if int(s) == stage) for stage in stages],
        "num_heads": [table.shape[1] for table in tables],
    }
    if projection.ndim == 5:
        for part in ("weight", "bias"):
            converted[f"video_embedding.{part}"] = converted.pop(f"patch_embedding.{part}")
        architecture |= {"name": "VideoSwinEncoder", "frame_size": projection.shape[2]}
    else:
        side = (round(len(tables[0]) ** 0.5) + 1) // 2
        architecture["window_size"] = [side, side]
    return converted, architecture


def inflate(
    state: State,
    architecture: dict[str, Any],
    slices: int,
    inflation: str,
    in_channels: int,
    mean: Sequence[float],
    std: Sequence[float],
    value_range: Sequence[float],
    image_size: Sequence[int] | None,
) -> list[str]:
    """Inflate the patch embedding of a converted state in place, resample its positions, and say what was done.

    Raises:
        ValueError: as the functions of ``common.weights.inflate``.
    """
    video = "video_embedding.weight" in state
    prefix = "video_embedding" if video else "patch_embedding"
    weight, bias = state[f"{prefix}.weight"], state[f"{prefix}.bias"]
    source = tuple(weight.shape)
    weight, bias = fold_normalization(weight, bias, mean, std, value_range)
    weight = adapt_channels(weight, in_channels)
    done = [
        f"normalisation folded in: mean {list(mean)}, standard deviation {list(std)} of images in 0..1, for images in "
        f"{value_range[0]:g}..{value_range[1]:g}",
        f"{source[1]} input channels summed, over {in_channels}",
    ]
    if video:
        done.append(f"patch embedding keeps its own depth of {source[2]}")
    else:
        weight = inflate_depth(weight, slices, inflation)
        architecture["slices"] = slices
        done.append(f"patch embedding {source} inflated to {slices} slices ({inflation}): {tuple(weight.shape)}")
    state[f"{prefix}.weight"], state[f"{prefix}.bias"] = weight, bias
    architecture["in_channels"] = in_channels
    if image_size is not None and "grid" in architecture:
        grid, new = architecture["grid"], [-(-side // architecture["patch_size"]) for side in image_size]
        for name, tensor in state.items():
            if name.endswith("relative_position_bias_table"):
                state[name] = resample_relative_positions(tensor, grid, new)
            elif name == "position_table":
                state[name] = resample_grid_positions(tensor, grid, new)
        architecture["grid"] = new
        done.append(f"positions of {grid[0]} x {grid[1]} tokens resampled for {new[0]} x {new[1]}")
    return done


def read_folder(folder: Path) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """The weights' file, ``config.json`` and ``preprocessor_config.json`` of a folder of ``transformers``; the latter
    are empty where there are none.

    Raises:
        FileNotFoundError: the folder holds no weights in one file.
    """
    files = [folder / name for name in HUB_FILES]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"no model.safetensors or pytorch_model.bin in {folder}: give a folder that `save_pretrained` wrote or "
            "that was downloaded from the hub, with its weights in one file."
        )
    settings = []
    for name in ("config.json", "preprocessor_config.json"):
        file = folder / name
        settings.append(json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {})
    return found, settings[0], settings[1]


def _layers(source: Source) -> State:
    """Tensors of a transformer of equal blocks, in our names; the joint projection of timm's names is taken apart, and
    a table of positions for all blocks is ``shared_table``."""
    names = source.renamed(_LAYER)
    converted = {name: source.take(old) for name, old in names.items() if _KEPT.match(name)}
    for name in [name for name in names if re.match(r"layers\.\d+\.attention\.qkv\.weight$", name)]:
        prefix = name.removesuffix("qkv.weight")
        joint = source.take(names[name]).chunk(3)
        converted |= {f"{prefix}{part}_proj.weight": weight for part, weight in zip("qkv", joint, strict=True)}
        if f"{prefix}qkv.bias" in names:
            biases = source.take(names[f"{prefix}qkv.bias"]).chunk(3)
            converted |= {f"{prefix}{part}_proj.bias": bias for part, bias in zip("qkv", biases, strict=True)}
        for part in ("q", "v"):
            if f"{prefix}{part}_bias" in names:
                converted[f"{prefix}{part}_proj.bias"] = source.take(names[f"{prefix}{part}_bias"])
    for name, old in names.items():
        if _SHARED_TABLE.search(name):
            converted["shared_table"] = source.take(old)
    source.left_out()
    return converted


def _merging_ends_its_stage(names: Mapping[str, str]) -> dict[str, str]:
    """Merging of patches under the number of the stage that it ends, as its authors count; timm from 0.9 on has it at
    the start of the stage that follows."""
    stages = {int(name.split(".")[1]) for name in names if name.startswith("stages.")}
    mergings = {int(name.split(".")[1]) for name in names if name.startswith("mergings.")}
    if not mergings or mergings != stages - {0}:
        return dict(names)
    return {
        re.sub(r"^mergings\.(\d+)", lambda found: f"mergings.{int(found[1]) - 1}", name): old
        for name, old in names.items()
    }


def _slices(architecture: Mapping[str, Any], state: State) -> nn.Module:
    """The encoder of slices of this architecture, for an image size that fits its tables."""
    from ..networks.beit_encoder import BeitEncoder
    from ..networks.dino_encoder import DinoEncoder
    from ..networks.swin_slice_encoder import SwinSliceEncoder, VideoSwinEncoder

    settings = dict(architecture)
    name, patch, grid = settings.pop("name"), settings["patch_size"], settings.pop("grid", None)
    if grid is not None:
        size = [side * patch for side in grid]
        if name == "BeitEncoder":
            return BeitEncoder(img_size=size, out_blocks=[1], **settings)
        return DinoEncoder(img_size=size, out_blocks=[1], **{**settings, "num_heads": 1})  # heads are a guess so far
    if name == "VideoSwinEncoder":
        return VideoSwinEncoder(img_size=[patch * 7 * 2 ** len(settings["depths"])] * 2, **settings)
    window = settings.pop("window_size")[0]
    size = [patch * window * 2 ** len(settings["depths"])] * 2
    return SwinSliceEncoder(img_size=size, window_size=window, **settings)


def _architecture(state: State, name: str) -> dict[str, Any]:
    projection = state["patch_embedding.weight"]
    if projection.ndim != 4:
        raise ValueError(f"a patch embedding of shape {tuple(projection.shape)}, which is not of 2-D patches")
    up, down = (state[f"layers.0.mlp.fc{number}.weight"] for number in (1, 2))
    if up.shape != down.T.shape:
        raise ValueError(f"MLPs of {tuple(up.shape)} and {tuple(down.shape)}, which are gated ones or none")
    return {
        "name": name,
        "in_channels": projection.shape[1],
        "patch_size": projection.shape[-1],
        "hidden_size": projection.shape[0],
        "mlp_dim": len(up),
        # The highest number, so that one left out in between is missed.
        "num_layers": 1 + max(int(key.split(".")[1]) for key in state if key.startswith("layers.")),
    }


# What tells by which mean and standard deviation a kind's images were normalised: of tensors' names, `model_type` in
# `config.json`, and the name of the file. Shapes are the same whatever they were, and so are most names.
_NORMALISATIONS: dict[str, tuple[tuple[str, str, dict[str, list[float]]], ...]] = {
    "beit": (
        ("tensor", r"^(.*\.)?cls_pt_layers\.", IMAGENET),  # blocks that only BEiT v2 has while it is pre-trained
        ("model_type", r"^beit$", HALVES),  # `transformers` has no v2
        ("file", r"beit_?v2", IMAGENET),
        ("file", r"^beit_(base|large)_patch", HALVES),
    ),
    "swin": (("tensor", "", IMAGENET),),
    "vit": (
        ("tensor", r"^head\.(mlp|last_layer)\.", IMAGENET),  # DINO
        ("tensor", r"(^|\.)decoder_pos_embed$", IMAGENET),  # MAE
        ("model_type", r"^(deit|vit_mae|vit_msn)$", IMAGENET),
        ("file", r"dino|deit|mae|ibot|moco", IMAGENET),
        ("file", r"augreg|in21k", HALVES),  # Google's
    ),
}


def source_normalisation(
    kind: str,
    names: Iterable[str],
    file: str,
    config: Mapping[str, Any],
    preprocessor: Mapping[str, Any],
) -> dict[str, Any]:
    """``mean`` and ``std`` per channel of images in 0..1 by which a 2-D checkpoint's images were normalised, and what
    said so (``from``): its preprocessor's or timm's settings, else names of its tensors, its configuration or its file.

    Raises:
        ValueError: nothing tells, as of a BEiT that may be of version 1 (0.5) or 2 (ImageNet's).
    """
    settings = (
        ("preprocessor_config.json", preprocessor, "image_mean", "image_std"),
        ("config.json", config.get("pretrained_cfg") or config, "mean", "std"),  # as timm writes it
    )
    for said, content, mean, std in settings:
        if content.get(mean) is not None and content.get(std) is not None:
            return {"mean": list(content[mean]), "std": list(content[std]), "from": said}
    clues = {"tensor": list(names), "model_type": [str(config.get("model_type", ""))], "file": [file]}
    for clue, pattern, normalisation in _NORMALISATIONS[kind]:
        found = next((text for text in clues[clue] if re.search(pattern, text)), None)
        if found is not None:
            return {**normalisation, "from": f"{clue} {found}" if pattern else "all of this kind"}
    raise ValueError(
        f"nothing tells by which mean and standard deviation the images of this {kind} were normalised: give --mean "
        f"and --std, ImageNet's {IMAGENET['mean']} and {IMAGENET['std']} (BEiT v2, DINO, DeiT, MAE), or 0.5 in all "
        "channels (BEiT, Google's ViT)"
    )


_HEADS = {
    "classification head": r"^(head|classifier|fc_norm|pre_logits|cls_head)\.",
    "final norm or pooler": r"^((beit|vit|deit|swin)\.)?(norm|layernorm|pooler(\.layernorm|\.dense)?)\.",
    "mask token": r"^((beit|vit|deit|swin)\.)?(embeddings\.)?(mask_token|masked_embed)$",
    "self-supervised head or decoder": r"^(lm_head|decoder|decoder_\w+)(\.|$)",
    "segmentation or detection": r"^(decode_head|auxiliary_head|neck|rpn_head|roi_head)\.",
    "indices and masks of windows": r"\.(relative_position_index|attn_mask)$",
}

IMAGE_KINDS = {
    "beit": Kind(
        beit,
        r"\.(lambda|gamma)_1$",
        _HEADS
        | {"pyramid": r"^(beit\.)?fpn\d\.", "class token's blocks of BEiT v2": r"^cls_pt_(layers|norm|lm_head)\."},
        _slices,
    ),
    "swin": Kind(
        swin,
        r"layers\.0\.blocks\.0\.",
        _HEADS | {"norms of maps": r"^(swin\.)?norm\d\.|^hidden_states_norms\."},
        _slices,
        fresh=("norms.",),
    ),
    "vit": Kind(vit, r"(^|\.)(embeddings\.position_embeddings|pos_embed)$", _HEADS, _slices),
}
"""Kinds of 2-D checkpoints by their names."""
