"""2-D vision transformers of other projects, in the names of the encoders of slices, and their inflation."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .adapt import adapt_channels
from .inflate import (
    fold_normalization,
    inflate_depth,
    resample_grid_positions,
    resample_relative_positions,
)

__all__ = ["beit", "inflate", "read_folder", "source_normalisation", "swin", "vit"]

State = dict[str, torch.Tensor]

HUB_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of the file of weights in a folder of the hub."""

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
HALVES = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}

# Names as `transformers` has them since version 5.24, of those of its earlier versions, which most files of the hub
# have, and of the projects' own (timm's).
_LAYER = (
    (r"^(?:module\.)?(?:backbone\.)?(?:(?:beit|vit)\.)?", ""),
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
# Of blocks and what stands ahead of them: what is not kept there makes another architecture.
_OF_OTHERS = re.compile(
    r"layers\.\d+\.|stages\.|norm_pre\.|(embeddings\.)?(register_tokens|reg_token|dist_token|distillation_token)$"
)
_MADE_OTHERWISE = re.compile(r"\.attention\.(qkv\.|[qv]_bias$|[qkv]_proj\.)|\.relative_position_index$|\.attn_mask$")
_SHARED_TABLE = re.compile(
    r"(rel_pos_bias|encoder\.relative_position_bias|shared_position_bias)\.relative_position_bias_table$"
)
_STAGE = (
    (r"^(?:module\.)?(?:backbone\.)?(?:swin\.)?(?:encoder\.)?", ""),
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


def beit(state: Mapping[str, torch.Tensor]) -> tuple[State, dict[str, Any]]:
    """BEiT of ``transformers`` or of its authors (Bao et al., ICLR 2022), with tables of relative positions of each
    block or one for all of them.

    Raises:
        ValueError: a tensor of a block that BEiT has not, or absolute positions.
    """
    converted = _layers(state, "BEiT")
    shared = next((tensor for name, tensor in state.items() if _SHARED_TABLE.search(name)), None)
    numbers = sorted({int(name.split(".")[1]) for name in converted if name.startswith("layers.")})
    if shared is not None:
        converted |= {f"position_biases.{n}.relative_position_bias_table": shared.clone() for n in numbers}
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


def vit(state: Mapping[str, torch.Tensor]) -> tuple[State, dict[str, Any]]:
    """Plain vision transformers with absolute positions: of ``transformers``, timm, DINO (Caron et al., ICCV 2021).

    Raises:
        ValueError: a tensor of a block that they have not, such as DINOv2's layer scales, or positions that are not
            those of a class token and a square of patches.
    """
    converted = _layers(state, "a plain ViT")
    scale = next((name for name in converted if re.search(r"\.lambda_|^position_biases", name)), None)
    if scale is not None:
        raise ValueError(f"it holds {scale}, which a plain ViT has not")
    side = round((converted["position_table"].shape[1] - 1) ** 0.5)
    if side**2 + 1 != converted["position_table"].shape[1]:
        raise ValueError("positions that are not those of a class token and a square of patches")
    hidden = converted["patch_embedding.weight"].shape[0]
    return converted, _architecture(converted, "DinoEncoder") | {
        "grid": [side, side],
        "num_heads": hidden // 64,  # as all published sizes have it
        "norm_eps": 1e-6,
    }


def swin(state: Mapping[str, torch.Tensor]) -> tuple[State, dict[str, Any]]:
    """Swin transformers of ``transformers``, of timm and of their authors (Liu et al., ICCV 2021), and their Video Swin
    transformers (CVPR 2022), which are told by a patch embedding with a depth.

    Raises:
        ValueError: a tensor of a block that they have not, such as Swin v2's logit scales.
    """
    renamed = _merging_ends_its_stage({_rename(name, _STAGE): tensor for name, tensor in state.items()})
    converted = {name: tensor for name, tensor in renamed.items() if _KEPT_STAGE.match(name)}
    _refuse_others(renamed, _KEPT_STAGE, "Swin")
    for name in [name for name in renamed if re.match(r"stages\..*\.attention\.q_proj\.", name)]:
        parts = [renamed[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
        converted[name.replace("attention.q_proj", "attn.qkv")] = torch.cat(parts)
    projection = converted["patch_embedding.weight"]
    blocks = [name.split(".")[1:3] for name in converted if name.endswith(".norm1.weight")]
    stages = sorted({int(stage) for stage, _ in blocks})
    tables = [converted[f"stages.{stage}.0.attn.relative_position_bias_table"] for stage in stages]
    architecture: dict[str, Any] = {
        "name": "SwinSliceEncoder",
        "in_channels": projection.shape[1],
        "patch_size": projection.shape[-1],
        "embed_dim": projection.shape[0],
        "depths": [sum(int(s) == stage for s, _ in blocks) for stage in stages],
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


def _layers(state: Mapping[str, torch.Tensor], kind: str) -> State:
    """Tensors of a transformer of equal blocks, in our names; the joint projection of timm's names is taken apart."""
    renamed = {_rename(name, _LAYER): tensor for name, tensor in state.items()}
    _refuse_others(renamed, _KEPT, kind)
    for name in [name for name in renamed if name.endswith("attention.qkv.weight")]:
        prefix = name.removesuffix("qkv.weight")
        weights = renamed[name].chunk(3)
        biases: Sequence[torch.Tensor | None] = [renamed.get(f"{prefix}q_bias"), None, renamed.get(f"{prefix}v_bias")]
        if f"{prefix}qkv.bias" in renamed:
            biases = renamed[f"{prefix}qkv.bias"].chunk(3)
        for part, weight, bias in zip("qkv", weights, biases, strict=True):
            renamed[f"{prefix}{part}_proj.weight"] = weight
            if bias is not None:
                renamed[f"{prefix}{part}_proj.bias"] = bias
    return {name: tensor for name, tensor in renamed.items() if _KEPT.match(name)}


def _merging_ends_its_stage(state: State) -> State:
    """Merging of patches under the number of the stage that it ends, as its authors count; timm from 0.9 on has it at
    the start of the stage that follows."""
    stages = {int(name.split(".")[1]) for name in state if name.startswith("stages.")}
    mergings = {int(name.split(".")[1]) for name in state if name.startswith("mergings.")}
    if not mergings or mergings != stages - {0}:
        return state
    earlier = {name: re.sub(r"^mergings\.(\d+)", lambda found: f"mergings.{int(found[1]) - 1}", name) for name in state}
    return {earlier[name]: tensor for name, tensor in state.items()}


def _refuse_others(names: Iterable[str], kept: re.Pattern[str], kind: str) -> None:
    """Raise if a block has a tensor that would be left out: the rest would load, and compute another thing."""
    for name in names:
        if _OF_OTHERS.match(name) and not kept.match(name) and not _MADE_OTHERWISE.search(name):
            raise ValueError(f"it holds {name}, which {kind} has not")


def _rename(name: str, rules: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


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


IMAGE_KINDS: dict[str, tuple[Callable[[Mapping[str, torch.Tensor]], tuple[State, dict[str, Any]]], str]] = {
    "beit": (beit, r"\.(lambda|gamma)_1$"),
    "swin": (swin, r"layers\.0\.blocks\.0\."),
    "vit": (vit, r"(^|\.)(embeddings\.position_embeddings|pos_embed)$"),
}
"""Kinds of 2-D checkpoints: the converter, and the name by which they are told."""
