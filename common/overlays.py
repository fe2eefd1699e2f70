"""What lies over a bundle's base files: where an overlay is found, and how lists of files and ``id=value`` are read."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["find_overlay", "parse_files", "parse_overrides", "parse_value"]


def find_overlay(name: str | Path, bundle: Path, base: Path | None = None) -> Path:
    """A config file by its name in a folder, in the bundle or in the bundle's ``configs/``, in this order.

    Args:
        name: path of the file; ``.json`` and all.
        bundle: folder of the bundle.
        base: what is looked in first; the working folder if None.

    Raises:
        FileNotFoundError: there is none, with the folders.
    """
    base = Path.cwd() if base is None else base
    for folder in (base, bundle, bundle / "configs"):
        if (folder / name).is_file():
            return (folder / name).absolute()
    raise FileNotFoundError(f"No config file {name}: neither in {base} nor in {bundle} or its configs.")


def parse_files(given: str | Sequence[Any]) -> list[str]:
    """Names of config files, however a user lists them: as MONAI does (``"['a.json','b.json']"``), by commas, or apart.

    Args:
        given: one such text, or several of them.
    """
    names: list[str] = []
    for text in [given] if isinstance(given, str) else given:
        text = str(text).strip()
        value = parse_value(text) if text.startswith("[") else text.split(",")
        # a name that merely begins with a bracket is a name
        names += [str(name).strip() for name in value] if isinstance(value, list) else [text]
    return [name for name in names if name]


def parse_overrides(given: str | Sequence[str] | Mapping[str, Any] | None, option: str = "override") -> dict[str, Any]:
    """Values by id, from ``id=value id=value``, a list of ``id=value``, or a mapping that already is so.

    Args:
        given: what the user gave.
        option: what error messages call it.

    Raises:
        ValueError: an entry without ``=``.
    """
    if given is None:
        return {}
    if isinstance(given, Mapping):
        return dict(given)
    if not isinstance(given, (str, list, tuple)):
        raise ValueError(f"--{option} {given!r}: write id=value.")
    result = {}
    # a space may also stand inside a value, such as a list
    for text in re.split(r"\s+(?=[\w#:]+=)", given.strip()) if isinstance(given, str) else given:
        key, equals, value = str(text).partition("=")
        if not equals:
            raise ValueError(f"--{option} {text!r} has no value; write id=value.")
        result[key] = parse_value(value)
    return result


def parse_value(text: str) -> Any:
    """A value of the command line: JSON or a Python literal, else the text as it is."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError):
            continue
    return text
