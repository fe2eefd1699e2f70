from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from ..bundles import bundles_root
from .encoder_file import read_encoder
from .hub import fetch, is_hub_name
from .images import IMAGENET, source_normalisation
from .kind import recognise
from .load import ADAPTED as WHEN_LOADED
from .prepare import prepared_ids
from .settings import differing_settings, plain
from .shipped import shipped_encoders
from .soundness import refuse_blank, refuse_unsound
from .source import Foreign, read_source

__all__ = ["architecture_of", "check", "encoder_of", "parts_of"]

ADAPTED = (*WHEN_LOADED, "window_size", "norm_eps")
"""Keys of an architecture that need not be equal: loading adapts them, or only warns."""


def check(path: str, kind: str | None = None) -> str:
    """Say what a file of weights is, which networks here use it, and by which command.

    Args:
        path: an encoder file, a foreign checkpoint, the name of an included encoder, or ``hf://...``.
        kind: kind of the checkpoint, where its tensors do not tell; a refusal names the choices.

    Raises:
        FileNotFoundError, ValueError: there is no such file; it is of no known kind (names the nearest kind and the
            first difference to it); or ``convert`` would refuse it.
    """
    file: str | os.PathLike = fetch(path).path if is_hub_name(path) else path
    state_and_record = _encoder_file(file)
    if state_and_record is not None:
        return _of_encoder_file(path, *state_and_record)
    foreign = read_source(file)
    name, known, _, architecture, left_out, zeros = recognise(path, foreign, kind, misfit="looks like {}, but {}")
    parts = "; ".join(f"{what} ({len(names)})" for what, names in left_out.items())
    lines = [
        f"{path} is of the kind {name}, {_describe(architecture)}. Left out: {parts or 'nothing'}.",
        *_attention(zeros),
    ]
    lines += _takers(architecture)[0]
    words = ["python", "-m", "common.weights", "convert", path, "encoder.safetensors"]
    words += ["--kind", kind] if kind else []
    if known.images and not _normalisation_shows(known, foreign):
        lines.append(
            "Nothing in it shows the mean and deviation that normalised its images: the command has ImageNet's; for "
            "BEiT and Google's ViT, write 0.5 in all channels."
        )
        words += [f"--{part}={str(IMAGENET[part]).replace(' ', '')}" for part in ("mean", "std")]
    if architecture.get("num_heads", 0) is None:
        lines.append("Its tensors do not show the number of attention heads: add --num_heads (12 in ViT-B and UNETR).")
    if architecture.get("patch_merging") == "PatchMerging":
        lines.append(
            "If it was trained with MONAI up to 1.4, add --legacy_patch_merging: its patch merging was another one."
        )
    return "\n".join([*lines, f"Make an encoder file of it: {shlex.join(words)}"])


def _attention(zeros: Sequence[str]) -> list[str]:
    """A line on weights that are 0, if there are any."""
    if not zeros:
        return []
    return [f"Attention: {len(zeros)} of its kernels and matrices are 0 throughout, such as {zeros[0]}."]


def _normalisation_shows(known: Any, foreign: Foreign) -> bool:
    try:
        source_normalisation(known, foreign.source.tensors, foreign.name, foreign.config, foreign.preprocessor)
    except ValueError:
        return False
    return True


def _of_encoder_file(path: str, state: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    architecture = record.get("architecture") or {}
    lines = [f"{path} is an encoder file: {record.get('method')}, {_describe(architecture)}."]
    refuse_unsound(path, state)
    lines += _attention(refuse_blank(path, state))
    takers, fits = _takers(architecture)
    lines += takers
    file = path if path in shipped_encoders() or is_hub_name(path) else str(Path(path).absolute())
    options = ["--pretrained_encoder", file]
    try:
        prepared_ids(path, record)
        options += ["--prepare_as", "encoder"]
        prepared = "on images prepared like its own: --prepare_as encoder"
    except ValueError:
        prepared = "on images prepared as its authors say, since its record does not"
    lines.append(f"Fine-tune it with {shlex.join(options[:2])}, {prepared}.")
    if fits:
        bundle, overlay = fits[0]
        configs = f"\"['configs/train.json','configs/networks/{overlay}.json']\""
        words = [*options, "--dataset_dir", "FOLDER", "--datalist", "LIST.json"]
        lines.append(
            f"In the folder of {bundle}: python -m monai.bundle run --config_file {configs} {shlex.join(words)}"
        )
        if bundle == "ssl3d":
            words = ["python", "-m", "common.auto", "--images", "SCANS", "--masks", "MASKS", "--network", overlay]
            lines.append(f"Or, with two folders: {shlex.join([*words, *options])}")
    return "\n".join(lines)


def _encoder_file(path: str | os.PathLike) -> tuple[Mapping[str, Any], dict[str, Any]] | None:
    """Tensors and record of an encoder file; None for other files."""
    try:
        return read_encoder(path)
    except FileNotFoundError as error:
        if Path(path).is_dir():
            return None
        names = ", ".join(shipped_encoders())
        raise FileNotFoundError(
            f"{path} does not exist: give a file of weights, the name of an included encoder ({names}), or "
            "hf://org/name/file."
        ) from error
    except ValueError as error:
        if re.search("is damaged|malformed record|upgrade", str(error)):
            raise
        return None


def _describe(architecture: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{key} {value}" for key, value in architecture.items() if key != "name")
    return f"for a {architecture.get('name')} ({settings})"


def _takers(architecture: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, str]]]:
    """Lines on the networks of the bundles that have such an encoder, and the bundle and overlay of those it fits."""
    fits, others = [], []
    for file in sorted(bundles_root().glob("*/configs/networks/*.json")):
        own = architecture_of(file) if _may_hold(file, str(architecture.get("name"))) else None
        if own is None or own.get("name") != architecture.get("name"):
            continue
        keys = differing_settings(own, architecture, ADAPTED)
        differing = [f"{key} {plain(own[key])} there, {plain(architecture[key])} in the file" for key in keys]
        place = file.parents[2].name, file.stem
        if differing:
            others.append(f"{place[0]}: networks/{file.name} ({'; '.join(differing)})")
        else:
            fits.append(place)
    lines = []
    if fits:
        lines.append(f"It fills {', '.join(f'{bundle}: networks/{overlay}.json' for bundle, overlay in fits)}.")
    if others:
        lines.append(f"With the settings of the file, these would take it: {', '.join(others)}.")
    if not lines:
        lines.append("No network of the bundles has such an encoder.")
    return lines, fits


def _may_hold(overlay: Path, name: str) -> bool:
    """Whether an overlay, or the module of a network of ours that it names, speaks of an encoder."""
    text = overlay.read_text(encoding="utf-8")
    package = __package__.rpartition(".")[0]
    for target in re.findall(r'"common\.(networks\.[\w.]+)"', text):
        module, _, network = target.rpartition(".")
        home = getattr(getattr(import_module(f"{package}.{module}"), network, None), "__module__", None)
        text += Path(str(import_module(home).__file__)).read_text(encoding="utf-8") if home else ""
    return re.search(rf"\b{name}\b", text) is not None


def architecture_of(overlay: Path, options: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """The architecture of the encoder that an overlay of a bundle makes; None if it cannot be made.

    Args:
        overlay, options: as for :func:`encoder_of`.
    """
    try:
        return dict(encoder_of(overlay, options).architecture())
    except Exception:  # MONAI wraps what a network raises
        return None


def encoder_of(overlay: Path, options: Mapping[str, Any] | None = None) -> Any:
    """The encoder that an overlay of a bundle makes, with tensors that hold no values.

    Args:
        overlay: a file of a bundle's ``configs/networks``.
        options: values by id, as behind ``monai.bundle run``.
    """
    return parts_of(overlay, ("encoder",), options)[0]


def parts_of(overlay: Path, names: Sequence[str], options: Mapping[str, Any] | None = None) -> list[Any]:
    """Networks by their ids that an overlay of a bundle makes; else as :func:`encoder_of`."""
    import torch
    from monai.bundle import ConfigParser
    from torch.overrides import TorchFunctionMode

    class ValuesOnCPU(TorchFunctionMode):
        """Swin UNETR reads the values of a range while it is made, which the device `meta` has not."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **({**(kwargs or {}), "device": "cpu"} if func is torch.linspace else kwargs or {}))

    parser = ConfigParser()
    parser.read_config([str(overlay.parents[1] / "train.json"), str(overlay)])
    parser.update(dict(options or {}))
    with torch.device("meta"), ValuesOnCPU():
        return [parser.get_parsed_content(name) for name in names]
