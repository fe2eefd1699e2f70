"""Published weights by name: what they are, and how the images that they saw were prepared."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from ..preparation import preparation_record

__all__ = ["find_published", "intensity_steps", "published", "published_weights"]


def published_weights() -> dict[str, dict[str, Any]]:
    """Facts about published weights by name, from ``published.json``.

    ``prepared`` has the fields of ``common.preparation.Preparation``; ``rule`` lists the configs of the intensity
    transforms. ``prepared_by`` names the source of these facts. ``unexpressed`` says which steps no id of the bundles
    can reproduce. ``architecture`` has what no tensor shows and the record of an encoder file gets. ``convert`` lists
    options of that command, ``options`` those of ``monai.bundle run`` that the overlay needs beside it.
    """
    return json.loads((Path(__file__).parent / "published.json").read_text(encoding="utf-8"))


def published() -> str:
    """List published weights that ``convert`` accepts: what they are, their licence, and which networks use them."""
    rows = []
    for name, entry in published_weights().items():
        loaded = "yes" if entry["loaded_here"] else "no"
        rows.append(
            f"{name}: {entry['method']}\n"
            f"    paper        {entry['paper']}\n"
            f"    saw          {entry['saw']}\n"
            f"    images       {_images(entry)}\n"
            f"    licence      {entry['licence']} (stated by: {entry['stated']})\n"
            f"    size         {entry['size'] or 'not known here'}\n"
            f"    get it       {entry['hub'] or 'where its authors put it'}\n"
            f"    convert      {_command(name, entry)}\n"
            f"    kind         {' or --kind '.join([entry['kind'], *entry.get('other_kinds', ())])}\n"
            f"    taken by     {entry['overlay']}{' with ' if 'options' in entry else ''}{entry.get('options', '')}\n"
            f"    loaded here for real: {loaded}"
        )
    return "\n".join(rows)


def _command(name: str, entry: Mapping[str, Any]) -> str:
    """The command that makes an encoder file of it."""
    source = entry["hub"] or "FILE"
    words = ["python -m common.weights convert", source, f"{name}.safetensors", f"--published {name}"]
    return " ".join([*words, *([entry["convert"]] if "convert" in entry else [])])


def _images(entry: Mapping[str, Any]) -> str:
    prepared = entry["prepared"]
    if not prepared:
        return entry["unexpressed"] or "how they were prepared is not known here"
    parts = [f"{name} {prepared[name]}" for name in ("spacing", "orientation") if name in prepared]
    parts += [one["_target_"].rpartition(".")[2] for one in prepared.get("rule", ())]
    further = f"; {entry['unexpressed']}" if entry["unexpressed"] else ""
    return f"{', '.join(parts)} (--prepare_as encoder; stated by: {entry['prepared_by']}){further}"


def find_published(name: str | None, origin: Mapping[str, Any], kind: str) -> tuple[str, dict[str, Any]] | None:
    """Find the entry of a checkpoint, by the user's name for it, its name on the hub, or its SHA-256.

    Args:
        name: name of the entry, if the user gave one.
        origin: ``name`` and ``sha256`` of the file.
        kind: kind of the checkpoint.

    Returns:
        name and entry, or None if no entry matches.

    Raises:
        ValueError: there is no entry of this name, or it is of another kind.
    """
    entries = published_weights()
    if name is not None:
        if name not in entries:
            raise ValueError(f"--published {name} is no name of `python -m common.weights list`: {', '.join(entries)}.")
        kinds = [entries[name]["kind"], *entries[name].get("other_kinds", ())]
        if kind not in kinds:
            raise ValueError(
                f"--published {name} is of the kind {' or '.join(kinds)}, but this file is of the kind {kind}: "
                "name the weights that it holds, or leave it out."
            )
        return name, entries[name]
    for own, entry in entries.items():
        digest = entry.get("sha256")
        place = str(origin.get("name")).partition("@")[0].partition("#")[0]
        if entry["hub"] == place or (digest is not None and digest == origin.get("sha256")):
            return own, entry
    return None


def intensity_steps(rule: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Convert configs of transforms (key ``image``) into the steps that a record holds for them."""
    config = {"rule": {"_target_": "Compose", "transforms": [dict(one) for one in rule]}}
    steps: list[dict[str, Any]] = preparation_record(ConfigParser(config=config).get_parsed_content("rule"))[
        "intensity"
    ]
    return steps
