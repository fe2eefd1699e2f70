from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..checkpoint_file import read_checkpoint
from ..preparation import Preparation
from .encoder_file import FORMAT_VERSION, read_safetensors, write_state
from .inflate import INFLATIONS
from .soundness import refuse_gaps, refuse_unsound
from .vision_transformers import HUB_FILES, IMAGE_KINDS, inflate, read_folder, source_normalisation

__all__ = ["KINDS", "convert", "medicalnet", "monai_mae", "swin_unetr_ssl", "unetr_mae"]

logger = logging.getLogger(__name__)

State = dict[str, torch.Tensor]


def convert(
    source: str | os.PathLike,
    output: str | os.PathLike,
    kind: str | None = None,
    num_heads: int | None = None,
    legacy_patch_merging: bool = False,
    spatial_size: Sequence[int] | None = None,
    spacing: Sequence[float] | None = None,
    orientation: str | None = None,
    intensity: str | None = None,
    data: str | None = None,
    slices: int = 1,
    inflation: str = "centring",
    in_channels: int = 1,
    image_size: Sequence[int] | int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    value_range: Sequence[float] = (-1.0, 1.0),
) -> dict[str, Any]:
    """Turn a foreign checkpoint into an encoder file and return its record.

    Args:
        source: a ``.pt``/``.pth`` file (read with ``weights_only=True``), a ``.safetensors`` file, or a folder that
            ``transformers`` wrote or that came from its hub.
        output: the encoder file to write.
        kind: one of ``KINDS``; found from the tensor names when not given. ``beit``, ``vit`` (DINO's and other plain
            vision transformers) and ``swin`` (Video Swin too) are 2-D models, for the encoders of slices: they are
            inflated, which the arguments from ``slices`` on are about.
        num_heads: attention heads of a ViT, which its weights do not tell (12 in UNETR). Of a 2-D ViT by default what
            ``config.json`` says, or one for 64 channels.
        legacy_patch_merging: for Swin UNETR weights trained with MONAI up to 1.4, whose patch merging dropped some
            neighbours (fixed in 1.5), found where names are old (``mlp.fc1``); such an encoder needs
            ``common.networks.LegacyPatchMerging``. Recorded in the
            file; loading into another encoder warns.
        spatial_size, spacing, orientation, intensity, data: what the weights were trained on, for the record; say what
            you know, since fine-tuning warns where its images differ. Intensities are told in words, which fine-tuning
            shows beside its own.
        slices: K, slices of a window. The default of 1 makes a file that is inflated when it is loaded, to any K and in
            any way; with more it is for nets of that K only, and the record says how it was inflated.
        inflation: ``centring`` or ``average`` (``common.weights.inflate.inflate_depth``), for more than one slice.
        in_channels: channels of the images at hand.
        image_size: side of the slices, or height and width, for which positions are resampled; by default they are when
            the file is loaded.
        mean, std: per channel, of images in 0..1, by which the source's images were normalised. By default what
            ``preprocessor_config.json`` or timm's ``config.json`` says, or what names of tensors or of the file tell:
            0.5 for BEiT, ImageNet's for BEiT v2, DINO, DeiT, MAE and Swin. Recorded, with what said so.
        value_range: range that the intensity rule of the bundle scales images to; recorded, and compared with the
            images' at fine-tuning.

    Raises:
        FileNotFoundError, ValueError: no such file, Python objects beside tensors, names of no known kind, values that
            are NaN, infinite or no floats, ``slices`` or ``inflation`` of what is not inflated, ``mean`` without
            ``std``, or neither where nothing tells them.
    """
    config: dict[str, Any] = {}
    preprocessor: dict[str, Any] = {}
    file = Path(source)
    if file.is_dir():
        file, config, preprocessor = read_folder(file)
    elif file.name in HUB_FILES and file.is_file():
        config, preprocessor = read_folder(file.parent)[1:]
    state = _read_checkpoint(file)
    if inflation not in INFLATIONS:
        raise ValueError(f"--inflation is {inflation!r}; it has to be one of {', '.join(INFLATIONS)}.")
    if slices == 1 and inflation != INFLATIONS[0]:
        raise ValueError(
            f"--inflation {inflation} is for more than one slice: give --slices, or leave it out and set inflation "
            "when you fine-tune."
        )
    marks = ((name, entry[1]) for name, entry in KINDS.items())
    # In their order: MAE of volumes has positions of a plain ViT beside its own.
    found = [name for name, mark in marks if any(re.search(mark, key) for key in state)]
    kinds = [kind] if kind else found[:1]
    if len(kinds) != 1 or kinds[0] not in KINDS:
        names = ", ".join(list(state)[:3])
        raise ValueError(
            f"{source} is of no known kind (tensors such as {names}); give --kind, one of {', '.join(KINDS)}."
        )
    try:
        converted, architecture = KINDS[kinds[0]][0](state)
        refuse_gaps(converted)
    except KeyError as error:
        raise ValueError(
            f"{source} is no checkpoint of the kind {kinds[0]}: it lacks tensors ({error}), and has such as "
            f"{', '.join(list(state)[:3])}."
        ) from error
    except ValueError as error:
        raise ValueError(f"{source} is no checkpoint of the kind {kinds[0]}: {error}.") from error
    # Of what is taken only: masks of attention that are left out may hold infinities.
    refuse_unsound(source, converted)
    conversion = None
    if slices != 1 and (kinds[0] not in IMAGE_KINDS or architecture["name"] == "VideoSwinEncoder"):
        raise ValueError(f"{source} is of volumes or videos, which are not inflated: leave out --slices.")
    if kinds[0] in IMAGE_KINDS:
        if (mean is None) != (std is None):
            raise ValueError("--mean and --std belong together: give both, or neither.")
        normalisation: dict[str, Any]
        if mean is not None and std is not None:
            normalisation = {"mean": list(mean), "std": list(std), "from": "--mean and --std"}
        else:
            name = (file.parent if file.name in HUB_FILES else file).resolve().name
            try:
                normalisation = source_normalisation(kinds[0], state, name, config, preprocessor)
            except ValueError as error:
                raise ValueError(f"{source}: {error}.") from error
        size = [image_size] * 2 if isinstance(image_size, int) else image_size
        if architecture["name"] == "DinoEncoder":
            architecture["num_heads"] = num_heads or config.get("num_attention_heads", architecture["num_heads"])
        conversion = inflate(
            converted,
            architecture,
            slices,
            inflation,
            in_channels,
            normalisation["mean"],
            normalisation["std"],
            value_range,
            size,
        )
        conversion.append(f"{len(converted)} tensors made of {len(state)}; heads, final norms and poolers left out")
    elif architecture["name"] == "ViTEncoder":
        architecture["num_heads"] = num_heads
    elif architecture["name"] == "SwinEncoder":
        # Names as MONAI had them only while its patch merging was the old one, such as in model_swinvit.pt.
        old = any(re.search(r"\.blocks\.\d+\.mlp\.fc1\.", name) for name in state)
        architecture["patch_merging"] = "LegacyPatchMerging" if legacy_patch_merging or old else "PatchMerging"
    record: dict[str, Any] = {
        "format": FORMAT_VERSION,
        "method": f"converted from {kinds[0]} checkpoint {Path(source).name}",
        "architecture": architecture,
        "spatial_size": list(spatial_size) if spatial_size else None,
        "preparation": asdict(
            Preparation(
                spacing=[float(value) for value in spacing] if spacing else None,
                orientation=orientation,
                intensity=None,  # in words at most
                value_range=[float(value) for value in value_range] if conversion is not None else None,
            )
        ),
        "intensity": intensity,
        "data": data,
    }
    taken = {tensor.data_ptr() for tensor in converted.values()}
    left_out = [name for name, tensor in state.items() if tensor.data_ptr() not in taken]
    logger.info(
        "%s: %d tensors of %d converted as %s of a %s%s.",
        source,
        len(state) - len(left_out),
        len(state),
        kinds[0],
        architecture["name"],
        f"; left out: {', '.join(left_out)}" if left_out else "",
    )
    if conversion is not None:
        record["conversion"] = conversion
        record["normalisation"] = normalisation
    if slices > 1:
        record["inflation"] = inflation
    write_state({name: tensor.contiguous().clone() for name, tensor in converted.items()}, output, record)
    return record


def unetr_mae(state: Mapping[str, torch.Tensor]) -> tuple[State, dict[str, Any]]:
    """Encoder of the published UNETR-MAE checkpoints (Zhang et al., BIBM 2023): timm block names, a class token,
    separable positions (``pos_embed_spatial``, ``pos_embed_temporal``, ``pos_embed_class``).

    The decoder, timm's unused head and its 2-D positions are left out.
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
    keep = re.compile(r"(patch_embed\.proj|blocks|norm)\.|cls_token$|pos_embed_(temporal|spatial|class)$")
    converted = {}
    for name, tensor in state.items():
        if keep.match(name):
            for pattern, replacement in renames:
                name = re.sub(pattern, replacement, name)
            converted[f"vit.{name}"] = tensor
    _fill_unused_norms(converted)
    return converted, _vit_architecture(converted) | {"norm_eps": 1e-6}


def monai_mae(state: Mapping[str, torch.Tensor]) -> tuple[State, dict[str, Any]]:
    """Encoder of a ``monai.networks.nets.MaskedAutoEncoderViT`` state dict.

    Its final norm is the last entry of ``blocks``; in ``ViT`` it is ``norm``.
    """
    blocks = [int(name.split(".")[1]) for name in state if re.match(r"blocks\.\d+\.norm1", name)]
    if not blocks:
        raise KeyError("blocks.0.norm1.weight")
    depth = 1 + max(blocks)
    converted = {}
    for name, tensor in state.items():
        if name == "cls_token" or name.startswith("patch_embedding."):
            converted[f"vit.{name}"] = tensor
        elif name.startswith("blocks.") and ".cross_attn." not in name:
            converted["vit." + name.replace(f"blocks.{depth}.", "norm.")] = tensor
    _fill_unused_norms(converted)
    return converted, _vit_architecture(converted) | {"norm_eps": 1e-5}


def swin_unetr_ssl(state: Mapping[str, torch.Tensor]) -> tuple[State, dict[str, Any]]:
    """Swin transformer of Swin UNETR checkpoints: the self-supervised ones of Tang et al. (CVPR 2022), old names
    (``module.layers1...mlp.fc1``) and new (``swinViT.layers1...mlp.linear1``), and whole Swin UNETR state dicts.
    """
    converted = {}
    for name, tensor in state.items():
        name = re.sub(r"^(swinViT|swin_vit)\.", "", name)
        if re.match(r"layers\dc\.", name):
            raise ValueError(
                f"it holds {name}, of Swin UNETR V2 (use_v2), and the encoder here is of V1, which computes something "
                "else"
            )
        if re.match(r"(patch_embed|layers\d)\.", name):
            converted["swin." + re.sub(r"\.mlp\.fc(\d)\.", r".mlp.linear\1.", name)] = tensor
    projection = converted["swin.patch_embed.proj.weight"]
    return converted, {
        "name": "SwinEncoder",
        "in_channels": projection.shape[1],
        "patch_size": list(projection.shape[2:]),
        "feature_size": projection.shape[0],
    }


def medicalnet(state: Mapping[str, torch.Tensor]) -> tuple[State, dict[str, Any]]:
    """Backbone of the published MedicalNet checkpoints (Chen et al., arXiv 1904.00625): a ``DilatedResNet``.

    Depth, shortcut and channels are read off the tensors, and every tensor of such a backbone has to be there, since
    a load without a match would otherwise train from scratch without a word. The segmentation or classification layers
    (``conv_seg``, ``fc``) are left out; counters of batches, which old PyTorch did not write, begin at 0.
    """
    from ..networks.dilated_resnet import BLOCKS, DilatedResNet

    converted = {name: tensor for name, tensor in state.items() if not re.match(r"(conv_seg|fc)\.", name)}
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
    expected = net.state_dict()
    for name in expected:
        if name.endswith(".num_batches_tracked"):
            converted.setdefault(name, torch.tensor(0))
    wrong = [name for name, tensor in expected.items() if getattr(converted.get(name), "shape", None) != tensor.shape]
    wrong += [name for name in converted if name not in expected]
    if wrong:
        kind = f"a ResNet-{depths[0]} with shortcut {shortcut}"
        raise ValueError(f"{len(wrong)} tensors are not those of {kind} ({', '.join(wrong[:3])})")
    return {name: converted[name] for name in expected}, net.architecture()


KINDS: dict[str, tuple[Callable[[Mapping[str, torch.Tensor]], tuple[State, dict[str, Any]]], str]] = {
    "unetr_mae": (unetr_mae, r"^pos_embed_spatial$"),
    "monai_mae": (monai_mae, r"^mask_tokens$"),
    "swin_unetr_ssl": (swin_unetr_ssl, r"layers1\.0\.blocks\.0\.attn\.qkv"),
    "medicalnet": (medicalnet, r"^layer1\.0\.conv1\.weight$"),
} | IMAGE_KINDS
"""Kinds of checkpoints: the converter, and the tensor name by which a checkpoint is told."""


HOLDERS = ("teacher", "state_dict", "model_state_dict", "network_weights", "model", "network", "net", "student")
"""Keys under which checkpoints hold a state dict; of two, the first."""

WRAPPERS = re.compile(r"^(?:(?:module|_orig_mod|model|net|backbone)\.)+")
"""What DataParallel, torch.compile and training code put ahead of the names, at times more than once."""


def _read_checkpoint(path: Path) -> State:
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}.")
    content: Any = read_safetensors(path)[0] if path.suffix == ".safetensors" else read_checkpoint(path)[0]
    while isinstance(content, Mapping):
        inner = next((key for key in HOLDERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = content[inner]
    items = content.items() if isinstance(content, Mapping) else ()
    state = {str(k): v for k, v in items if isinstance(v, torch.Tensor)}
    stripped = {WRAPPERS.sub("", name): tensor for name, tensor in state.items()}
    if len(stripped) == len(state):  # else one would take the other's place
        state = stripped
    if not state:
        raise ValueError(
            f"{path} holds no state dict: give a file with a state dict, or one under 'state_dict' or 'model'."
        )
    return state


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
        "num_layers": len([name for name in state if name.endswith(".norm1.weight")]),
        "qkv_bias": "vit.blocks.0.attn.qkv.bias" in state,
        "class_token": any("cls_token" in name for name in state),
    }
