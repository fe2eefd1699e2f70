from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..files import file_digest
from ..networks.foreign import Kind
from ..preparation import Preparation
from ..volumes import AXIS_CODES, and_more, is_orientation
from .encoder_file import FORMAT_VERSION, write_state
from .hub import fetch, is_hub_name
from .images import inflate, source_normalisation
from .inflate import INFLATIONS
from .kind import recognise
from .options import numbers
from .published import find_published, intensity_steps
from .source import Foreign, read_source

__all__ = ["convert"]

logger = logging.getLogger(__name__)

VERSION = 1
"""Of the converter; raise it with each change after which a checkpoint makes another encoder file.

``common.weights.find_encoder`` keeps encoders that it converted under this number, too.
"""

EMBEDDINGS = ("video_embedding.weight", "patch_embedding.weight")
"""Names of the patch embeddings of the slice encoders."""

GUESSED_HEADS = ("ViTEncoder", "DinoEncoder", "PrimusEncoder")
"""Encoders whose tensors do not show the number of attention heads."""


def convert(
    source: str | os.PathLike,
    output: str | os.PathLike,
    kind: str | None = None,
    num_heads: int | None = None,
    legacy_patch_merging: bool = False,
    spatial_size: Sequence[int] | int | None = None,
    spacing: Sequence[float] | float | None = None,
    orientation: str | None = None,
    intensity: str | None = None,
    data: str | None = None,
    slices: int = 1,
    inflation: str = "centring",
    in_channels: int = 1,
    image_size: Sequence[int] | int | None = None,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    value_range: Sequence[float] = (-1.0, 1.0),
    leave_out: str | None = None,
    published: str | None = None,
) -> dict[str, Any]:
    """Turn a foreign checkpoint into an encoder file and return its record.

    Every tensor of the source is used or left out by a rule of its kind, and every tensor of the encoder is filled. The
    record says how many tensors of which part were left out.

    Args:
        source: a ``.pt``/``.pth`` file (read with ``weights_only=True``), a ``.safetensors`` file, a folder written by
            ``transformers`` or downloaded from its hub, or the name of a file on the hub,
            ``hf://org/name/file@revision`` (``common.weights.hub``). The record keeps its SHA-256 and the licence that
            the hub states.
        output: the encoder file to write.
        kind: a name from ``common.weights.kind.known_kinds``; found from the tensors by default. ``beit``, ``vit``
            (DINO's and other plain vision transformers) and ``swin`` (also Video Swin) are 2-D models for the slice
            encoders. They are inflated; the arguments from ``slices`` on set how.
        num_heads: attention heads of a ViT, which its weights do not show (12 in UNETR). The default for a 2-D ViT is
            the number in ``config.json``, or one head per 64 channels.
        legacy_patch_merging: for Swin UNETR weights trained with MONAI up to 1.4, whose patch merging dropped some
            neighbours (fixed in 1.5); detected by old names (``mlp.fc1``). Such an encoder needs
            ``common.networks.LegacyPatchMerging``. The file records it, and loading into another encoder warns.
        spatial_size, spacing, orientation, intensity, data: properties of the training images, for the record. Give
            what you know, since fine-tuning warns if its images differ. One number for the size or the spacing stands
            for all three axes. Intensities are described in words, which fine-tuning shows beside its own.
        slices: K, slices of a window. The default of 1 makes a file that is inflated on loading, to any K and in any
            way. A file for more slices fits nets of that K only, and its record says how it was inflated.
        inflation: ``centring`` or ``average`` (``common.weights.inflate.inflate_depth``), for more than one slice.
        in_channels: channels of your images.
        image_size: side of the slices, or height and width, to resample positions for; by default this happens when the
            file is loaded.
        mean, std: normalisation of the source's images, for images in 0..1: a number per channel, or one for all. The
            default comes from
            ``preprocessor_config.json`` or timm's ``config.json``, or from the names of tensors or of the file: 0.5 for
            BEiT, ImageNet's for BEiT v2, DINO, DeiT, MAE and Swin. The record keeps it with its source.
        value_range: range that the intensity rule of the bundle scales images to; recorded, and compared with the
            images in fine-tuning.
        leave_out: regular expression for names of further tensors that the encoder does not need, such as a head that
            no rule knows.
        published: which of ``python -m common.weights list`` it is. The record then says how their images were
            prepared, for ``--prepare_as encoder``. A file that goes by its name on the hub is known without it. What
            the file itself says, and the arguments above, come first.

    Raises:
        FileNotFoundError, ValueError: there is no such file; it holds Python objects beside tensors, names of no known
            kind, tensors that no rule of the kind uses or leaves out, values that are NaN, infinite or not floats, or
            nothing but kernels and matrices of one value each; parts of the encoder are missing; ``slices`` or
            ``inflation`` is given for weights that are not inflated; ``mean`` is given without ``std``, or neither is
            given or known; a value is none of its option, or the tensors show another ``num_heads``.
    """
    spatial_size = numbers("--spatial_size", spatial_size, 3, "axis", whole=True)
    spacing = numbers("--spacing", spacing, 3, "axis")
    image_size = numbers("--image_size", image_size, 2, "side of a slice, height and width", whole=True)
    value_range = numbers("--value_range", value_range, 2, "end", above=None, spread=False) or [-1.0, 1.0]
    _check_options(value_range, orientation, in_channels, slices, num_heads, mean, std, inflation)
    origin: dict[str, Any] | None = None
    if is_hub_name(source):
        source, origin = fetch(str(source))
    foreign = read_source(source)
    origin = origin or {"name": foreign.file.name, "sha256": file_digest(foreign.file), "licence": None}
    kind, known, converted, architecture, left_out, zeros = recognise(source, foreign, kind, leave_out)
    _set_hidden(architecture, source, foreign, known, num_heads, legacy_patch_merging)
    entry = find_published(published, origin, kind)
    for key, value in (entry[1].get("architecture") or {} if entry else {}).items():
        if key == "patch_merging" or architecture.get(key) is None:
            architecture[key] = value
    if slices != 1 and (not known.images or architecture["name"] == "VideoSwinEncoder"):
        raise ValueError(f"{source} is for volumes or videos, which are not inflated: leave out --slices.")
    normalisation, conversion = None, None
    if known.images:
        channels = next(converted[name] for name in EMBEDDINGS if name in converted).shape[1]
        normalisation = _normalise(source, foreign, known, channels, mean, std)
        conversion = inflate(
            converted,
            architecture,
            slices,
            inflation,
            in_channels,
            normalisation["mean"],
            normalisation["std"],
            value_range,
            image_size,
        )
        parts = ", ".join(f"{what} ({len(names)})" for what, names in left_out.items())
        conversion.append(
            f"{len(converted)} tensors made of {len(foreign.source.tensors)}; left out: {parts or 'none'}"
        )
    record: dict[str, Any] = {
        "format": FORMAT_VERSION,
        "method": f"converted from {kind} checkpoint {Path(source).name}",
        "architecture": architecture,
        **_images(source, foreign, known, entry, spatial_size, spacing, orientation, intensity, value_range),
        "published": entry[0] if entry else None,
        "origin": origin,
        "data": data,
        "left_out": {what: len(names) for what, names in left_out.items()},
    }
    passed = [name for part in left_out.values() for name in part]
    total = len(foreign.source.tensors) + len(foreign.others)
    logger.info(
        "%s: %d tensors of %d converted as %s of a %s%s.",
        source,
        total - len(passed),
        total,
        kind,
        architecture["name"],
        f"; left out: {', '.join(passed)}" if passed else "",
    )
    if zeros:
        logger.warning("%s: %s, kernels and matrices, are 0 throughout.", source, and_more(zeros))
    if conversion is not None:
        record["conversion"] = conversion
        record["normalisation"] = normalisation
    if slices > 1:
        record["inflation"] = inflation
    write_state({name: tensor.contiguous().clone() for name, tensor in converted.items()}, output, record)
    return record


def _check_options(
    value_range: Sequence[float],
    orientation: str | None,
    in_channels: int,
    slices: int,
    num_heads: int | None,
    mean: Sequence[float] | float | None,
    std: Sequence[float] | float | None,
    inflation: str,
) -> None:
    """Refuse values that are none of their option, before a file is fetched and read."""
    if value_range[0] >= value_range[1]:
        raise ValueError(f"--value_range is {value_range}: give the lower end first, such as [-1,1].")
    if orientation is not None and not is_orientation(orientation):
        raise ValueError(f"--orientation is {orientation!r}: {AXIS_CODES}.")
    for option, count in (("--in_channels", in_channels), ("--slices", slices), ("--num_heads", num_heads)):
        if count is not None and count < 1:
            raise ValueError(f"{option} is {count}: give a whole number, 1 or more.")
    if (mean is None) != (std is None):
        raise ValueError("--mean and --std belong together: give both, or neither.")
    if inflation not in INFLATIONS:
        raise ValueError(f"--inflation is {inflation!r}; it must be one of {', '.join(INFLATIONS)}.")
    if slices == 1 and inflation != INFLATIONS[0]:
        raise ValueError(
            f"--inflation {inflation} is for more than one slice: give --slices, or leave it out and set inflation "
            "when you fine-tune."
        )


def _set_hidden(
    architecture: dict[str, Any],
    source: str | os.PathLike,
    foreign: Foreign,
    known: Kind,
    num_heads: int | None,
    legacy_patch_merging: bool,
) -> None:
    """Set what the tensors do not show: the number of attention heads, and an older patch merging."""
    if num_heads is not None:
        _set_heads(architecture, num_heads, f"--num_heads is {num_heads}")
    elif known.images and foreign.config.get("num_attention_heads") is not None:
        stated = foreign.config["num_attention_heads"]
        _set_heads(architecture, stated, f"config.json beside {source} says num_attention_heads {stated!r}")
    if legacy_patch_merging and "patch_merging" in architecture:
        architecture["patch_merging"] = "LegacyPatchMerging"


def _set_heads(architecture: dict[str, Any], heads: Any, said: str) -> None:
    """Set the number of attention heads, if tensors of the kind do not show another one.

    Raises:
        ValueError: they do, the kind has no attention, or the number does not divide the width.
    """
    shown = architecture.get("num_heads", "none")
    if architecture["name"] not in GUESSED_HEADS:
        if shown != heads:
            raise ValueError(f"{said}, but the tensors show {shown}: remove it.")
        return
    width = architecture["hidden_size"]
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise ValueError(f"{said}, which does not divide the width of {width}: give the number in its paper or code.")
    architecture["num_heads"] = heads


def _normalise(
    source: str | os.PathLike,
    foreign: Foreign,
    known: Kind,
    channels: int,
    mean: Sequence[float] | float | None,
    std: Sequence[float] | float | None,
) -> dict[str, Any]:
    """``mean`` and ``std`` by which the source's images were normalised, for each channel, and where they are ``from``.

    Raises:
        ValueError: they are neither given nor known, or their numbers do not fit.
    """
    normalisation: dict[str, Any]
    if mean is not None and std is not None:
        normalisation = {"mean": mean, "std": std, "from": "--mean and --std"}
    else:
        try:
            normalisation = source_normalisation(
                known, foreign.source.tensors, foreign.name, foreign.config, foreign.preprocessor
            )
        except ValueError as error:
            raise ValueError(f"{source}: {error}.") from error
    said = normalisation["from"]
    words = ("--mean", "--std") if mean is not None else (f"the mean by {said}", f"the deviation by {said}")
    for word, part, above in zip(words, ("mean", "std"), (None, 0), strict=True):
        normalisation[part] = numbers(word, normalisation[part], channels, "channel of the weights", above=above)
    return normalisation


def _images(
    source: str | os.PathLike,
    foreign: Foreign,
    known: Kind,
    entry: tuple[str, dict[str, Any]] | None,
    spatial_size: Sequence[int] | None,
    spacing: Sequence[float] | None,
    orientation: str | None,
    intensity: str | None,
    value_range: Sequence[float],
) -> dict[str, Any]:
    """What the record says of the training images: as given, else as the file says, else as its entry does."""
    try:
        stated = known.prepared(foreign.source)
    except ValueError as error:
        raise ValueError(f"{source}: {error}.") from error
    prepared = {**(entry[1]["prepared"] if entry else {}), **{k: v for k, v in stated.items() if v is not None}}
    rule = None if intensity else prepared.get("rule")
    steps = intensity_steps(rule) if rule is not None else None
    return {
        "spatial_size": spatial_size or prepared.get("size"),
        "preparation": asdict(
            Preparation(
                channels=prepared.get("channels"),
                spacing=[float(value) for value in spacing] if spacing else prepared.get("spacing"),
                orientation=orientation or prepared.get("orientation"),
                intensity=steps,
                value_range=[float(value) for value in value_range] if known.images else None,
            )
        ),
        "intensity": intensity or (prepared.get("words") if steps is None else None),
        "unexpressed": prepared.get("unexpressed") or (entry[1]["unexpressed"] if entry else None),
    }
