from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..bundles import bundles_root
from .encoder_file import read_encoder
from .hub import fetch, is_hub_name
from .kind import fill, find_kind, nearest_kind
from .source import read_source

__all__ = ["check"]


def check(path: str) -> str:
    """Say what a file of weights is, which networks here use it, and by which command.

    Args:
        path: an encoder file, a foreign checkpoint, the name of an included encoder, or ``hf://...``.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it is of no known kind (names the nearest kind and the
            first difference to it).
    """
    file: str | os.PathLike = fetch(path).path if is_hub_name(path) else path
    record = _record(file)
    if record is not None:
        architecture = record.get("architecture") or {}
        return (
            f"{path} is an encoder file: {record.get('method')}, {_describe(architecture)}.\n"
            f"{_takers(architecture)}"
            f"Fine-tune it with --pretrained_encoder {path}, on images prepared like its own: --prepare_as encoder."
        )
    foreign = read_source(file)
    try:
        name, kind = find_kind(foreign.source.tensors, None, foreign.name)
    except ValueError as error:
        if not str(error).startswith("is of no known kind"):
            raise ValueError(f"{path} {error}.") from error
        near = nearest_kind(foreign.source)
        first = ", ".join(list(foreign.source.tensors)[:3])
        raise ValueError(
            f"{path} is of no known kind (it has tensors such as {first})."
            if near is None
            else f"{path} is of no known kind; the nearest is {near[0]}, but {near[1]}."
        ) from error
    try:
        _, architecture, left_out = fill(kind, foreign.source)
    except (KeyError, ValueError) as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{path} looks like {name}, but {why}.") from error
    parts = "; ".join(f"{what} ({len(names)})" for what, names in left_out.items())
    return (
        f"{path} is of the kind {name}, {_describe(architecture)}. Left out: {parts or 'nothing'}.\n"
        f"{_takers(architecture)}"
        f"Make an encoder file of it: python -m common.weights convert {path} encoder.safetensors"
    )


def _record(path: str | os.PathLike) -> dict[str, Any] | None:
    """The record of an encoder file; None for other files."""
    try:
        return read_encoder(path)[1]
    except FileNotFoundError:
        if Path(path).is_dir():
            return None
        raise
    except ValueError as error:
        if re.search("is damaged|malformed record|upgrade", str(error)):
            raise
        return None


def _describe(architecture: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{key} {value}" for key, value in architecture.items() if key != "name")
    return f"for a {architecture.get('name')} ({settings})"


def _takers(architecture: Mapping[str, Any]) -> str:
    """Networks of the bundles with such an encoder; their sizes must match the file."""
    name = re.compile(rf"\b{architecture.get('name')}\b")
    found = [
        f"{file.parents[2].name}: networks/{file.name}"
        for file in sorted(bundles_root().glob("*/configs/networks/*.json"))
        if name.search(file.read_text(encoding="utf-8"))
    ]
    return f"If the sizes match, these can use it: {', '.join(found)}.\n" if found else ""
