from __future__ import annotations

import json
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

__all__ = ["check", "published", "published_weights"]


def published_weights() -> dict[str, dict[str, Any]]:
    """What is known of published weights, by name (``published.json``): paper, method, what they saw, licence in words,
    size, kind, the overlay that takes them, their name on the hub, who stated it, and whether they were loaded here."""
    return json.loads((Path(__file__).parent / "published.json").read_text(encoding="utf-8"))


def published() -> str:
    """Published weights whose kinds ``convert`` takes: what they are, their licence, and what takes them here."""
    rows = []
    for name, entry in published_weights().items():
        loaded = "yes" if entry["loaded_here"] else "no"
        rows.append(
            f"{name}: {entry['method']}\n"
            f"    paper        {entry['paper']}\n"
            f"    saw          {entry['saw']}\n"
            f"    licence      {entry['licence']} (stated by: {entry['stated']})\n"
            f"    size         {entry['size'] or 'not known here'}\n"
            f"    taken by     {entry['overlay']} (kind {entry['kind']})\n"
            f"    get it       {entry['hub'] or 'where its authors put it'}\n"
            f"    loaded here for real: {loaded}"
        )
    return "\n".join(rows)


def check(path: str) -> str:
    """What a file of weights is, what takes it here, and by which command.

    Args:
        path: an encoder file, a foreign checkpoint, the name of an encoder that comes along, or ``hf://...``.

    Raises:
        FileNotFoundError, ValueError: no such file; of no kind that is known here, with the nearest kind and the first
            difference to it.
    """
    file: str | os.PathLike = fetch(path).path if is_hub_name(path) else path
    record = _record(file)
    if record is not None:
        architecture = record.get("architecture") or {}
        return (
            f"{path} is an encoder file: {record.get('method')}, {_describe(architecture)}.\n"
            f"{_takers(architecture)}"
            f"Fine-tune it with --pretrained_encoder {path}, on images prepared as its own: --prepare_as encoder."
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
            f"{path} is of no kind that is known here (tensors such as {first})."
            if near is None
            else f"{path} is of no kind that is known here; the nearest is {near[0]}, but {near[1]}."
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
    """The record of an encoder file, None of others."""
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
    """Networks of the bundles with such an encoder; their sizes have to be the file's."""
    name = re.compile(rf"\b{architecture.get('name')}\b")
    found = [
        f"{file.parents[2].name}: networks/{file.name}"
        for file in sorted(bundles_root().glob("*/configs/networks/*.json"))
        if name.search(file.read_text(encoding="utf-8"))
    ]
    return f"Taken, where the sizes are the file's, by {', '.join(found)}.\n" if found else ""
