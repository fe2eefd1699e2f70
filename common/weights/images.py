"""Adapt weights of 2-D images: fold in their normalisation and inflate their patch embedding."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..networks.foreign import Kind, State
from ..networks.slice_names import IMAGENET
from .adapt import adapt_channels
from .inflate import fold_normalization, inflate_depth, resample_grid_positions, resample_relative_positions

__all__ = ["inflate", "source_normalisation"]


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


def source_normalisation(
    kind: Kind,
    names: Iterable[str],
    file: str,
    config: Mapping[str, Any],
    preprocessor: Mapping[str, Any],
) -> dict[str, Any]:
    """``mean`` and ``std`` of a 2-D checkpoint's images, per channel in 0..1, and their source (``from``).

    Raises:
        ValueError: nothing shows them, as for a BEiT that may be of version 1 (0.5) or 2 (ImageNet's).
    """
    timm = config.get("pretrained_cfg")  # where timm writes it
    settings = (
        ("preprocessor_config.json", preprocessor, "image_mean", "image_std"),
        ("config.json", timm if isinstance(timm, Mapping) else config, "mean", "std"),
    )
    for said, content, mean, std in settings:
        if content.get(mean) is not None and content.get(std) is not None:
            return {"mean": content[mean], "std": content[std], "from": said}
    clues = {"tensor": list(names), "model_type": [str(config.get("model_type", ""))], "file": [file]}
    for clue, pattern, normalisation in kind.images:
        found = next((text for text in clues[clue] if re.search(pattern, text)), None)
        if found is not None:
            return {**normalisation, "from": f"{clue} {found}" if pattern else "all of this kind"}
    raise ValueError(
        "nothing shows the mean and standard deviation that normalised its images: give --mean and --std, "
        f"ImageNet's {IMAGENET['mean']} and {IMAGENET['std']} (BEiT v2, DINO, DeiT, MAE), or 0.5 in all channels "
        "(BEiT, Google's ViT)"
    )
