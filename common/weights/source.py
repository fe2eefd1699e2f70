from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..checkpoint_file import read_checkpoint
from ..json_files import read_json
from ..networks.foreign import Source
from ..volumes import and_more
from .encoder_file import read_safetensors

__all__ = ["Foreign", "read_source"]

HUB_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of the file of weights in a folder of the hub."""

HUB_SETTINGS = ("config.json", "preprocessor_config.json")
"""Files beside it that say what its tensors do not show."""

HOLDERS = (
    "teacher",
    "model_ema",
    "state_dict_ema",
    "state_dict",
    "model_state_dict",
    "network_weights",
    "model",
    "network",
    "net",
    "student",
)
"""Keys under which checkpoints hold a state dict; the first one found is used. If none is there, and one entry alone
holds tensors by name, it is that one."""

WRAPPERS = re.compile(r"^(?:(?:module|_orig_mod|model|net|backbone|image_encoder)\.)+")
"""Prefixes of names from DataParallel, torch.compile and training code, sometimes repeated."""

TEACHERS = ("teacher.", "teacher_backbone.", "ema.", "student.", "student_backbone.")
"""Prefixes that select one network of several in a state dict; the first one found is used."""


class Foreign(NamedTuple):
    """A foreign checkpoint as read from its file.

    Attributes:
        source: its tensors and everything else in it.
        file: path that was read.
        name: name of the file, or of its folder from the hub.
        config: the folder's ``config.json``.
        preprocessor: the folder's ``preprocessor_config.json``.
        others: tensor names of further networks in it, such as a student beside its teacher.
    """

    source: Source
    file: Path
    name: str
    config: dict[str, Any]
    preprocessor: dict[str, Any]
    others: list[str]


def read_source(path: str | os.PathLike) -> Foreign:
    """Read the tensors of a foreign checkpoint, without prefixes that wrappers add to names, and its other content.

    Args:
        path: a ``.pt``/``.pth`` file, a ``.safetensors`` file, or a folder of ``transformers`` or of the hub.

    Raises:
        FileNotFoundError: there is no such file, or the folder does not hold its weights in one file.
        ValueError: it cannot be read, holds Python objects beside tensors, or has no state dict.
    """
    file = Path(path)
    config: dict[str, Any] = {}
    preprocessor: dict[str, Any] = {}
    if file.is_dir():
        file, config, preprocessor = _read_folder(file)
    elif file.name in HUB_FILES and file.is_file():
        config, preprocessor = _read_folder(file.parent)[1:]
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist: give a file of weights, or a folder with model.safetensors.")
    content: Any = (
        read_safetensors(file)[0] if file.suffix == ".safetensors" else read_checkpoint(file, harmless=True)[0]
    )
    beside: dict[str, Any] = {}
    rest: list[str] = []
    while isinstance(content, Mapping):
        inner = _holder(content, file)
        if inner is None:
            break
        beside |= {str(key): value for key, value in content.items() if key not in HOLDERS}
        rest += [f"{key}.{name}" for key in HOLDERS if key != inner for name in _tensors(content.get(key))]
        content = content[inner]
    state = _tensors(content)
    if not state:
        raise ValueError(
            f"{file} holds no state dict{_instead(content)}: give a file with a state dict, or one under 'state_dict' "
            "or 'model'."
        )
    state, others = _one_network(_unwrapped(state))
    others += rest
    # Not resolved: the cache of the hub has links to files that are named by their digests.
    name = (file.parent if file.name in HUB_FILES else file).absolute().name
    return Foreign(Source(_unwrapped(state), beside), file, name, config, preprocessor, others)


def _tensors(content: Any) -> dict[str, torch.Tensor]:
    """The tensors of a mapping by name; none of anything else."""
    items = content.items() if isinstance(content, Mapping) else ()
    return {str(key): value for key, value in items if isinstance(value, torch.Tensor)}


def _holder(content: Mapping[Any, Any], file: Path) -> Any:
    """The key under which a mapping holds the state dict; None if it is one itself, or holds none.

    Raises:
        ValueError: several entries hold one, under names that do not show which is wanted.
    """
    known = next((key for key in HOLDERS if isinstance(content.get(key), Mapping)), None)
    if known is not None or _tensors(content):
        return known
    found = [key for key, value in content.items() if _tensors(value)]
    if len(found) > 1:
        raise ValueError(
            f"{file} holds several state dicts ({', '.join(map(str, found))}): save the one of the encoder, or of the "
            "whole network, as a file of its own."
        )
    return found[0] if found else None


def _instead(content: Any) -> str:
    """What a file holds that has no state dict, as part of a sentence."""
    if not isinstance(content, Mapping):
        return f" but a {type(content).__name__}"
    if not content:
        return ", it is empty"
    parts = [content, *(value for value in content.values() if isinstance(value, Mapping))]
    if any("param_groups" in part for part in parts):
        return ", only the state of an optimizer"
    return f" but {and_more(list(map(str, content)))}"


def _unwrapped(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    stripped = {WRAPPERS.sub("", name): tensor for name, tensor in state.items()}
    return stripped if len(stripped) == len(state) else state  # else one would take the other's place


def _one_network(state: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The tensors of one network of several, and the tensor names of the others."""
    found = next((start for start in TEACHERS if any(name.startswith(start) for name in state)), None)
    if found is None:
        return state, []
    kept = {name.removeprefix(found): tensor for name, tensor in state.items() if name.startswith(found)}
    return kept, [name for name in state if not name.startswith(found)]


def _read_folder(folder: Path) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    files = [folder / name for name in HUB_FILES]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"no model.safetensors or pytorch_model.bin in {folder}: give a folder that `save_pretrained` wrote or "
            "that was downloaded from the hub, with its weights in one file."
        )
    settings = []
    for name in HUB_SETTINGS:
        file = folder / name
        settings.append(read_json(file, {}))
        if not isinstance(settings[-1], Mapping):
            raise ValueError(
                f"{file} holds a {type(settings[-1]).__name__} in place of settings by name: take another copy of it, "
                "or remove it."
            )
    return found, settings[0], settings[1]
