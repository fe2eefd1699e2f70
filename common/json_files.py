"""Read JSON files, and write them atomically."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .files import atomic_write

__all__ = ["read_json", "to_json", "write_json"]

WIDTH = 100
"""Longest line with a list, in characters, including its indent and the comma after it."""


def read_json(path: str | os.PathLike, default: Any = ...) -> Any:
    """The content of a JSON file.

    Args:
        path: path of the file.
        default: returned if there is no such file.

    Raises:
        FileNotFoundError: there is no such file, and no default.
        ValueError: the file is not JSON; the message names it.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))  # on Windows with a byte-order mark
    except FileNotFoundError:
        if default is ...:
            raise
        return default
    except (ValueError, RecursionError) as error:  # the last where it is nested too deeply
        raise ValueError(f"{path} cannot be read as JSON ({error}).") from error


def write_json(path: str | os.PathLike, content: Any, default: Callable[[Any], Any] | None = None) -> None:
    """Write a JSON file, completely or not at all.

    Args:
        path: path of the file.
        content: dictionaries, lists, text, numbers.
        default: converts values that JSON cannot store, such as ``str`` to their text.

    Raises:
        OSError: the file cannot be written.
        TypeError: JSON has no form for a value, and there is no ``default``.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(to_json(content, default), encoding="utf-8")


def to_json(content: Any, default: Callable[[Any], Any] | None = None) -> str:
    """The text of a JSON file, indented by four spaces; a list without dictionaries is on one line if it fits.

    Args:
        content: as for `write_json`.
        default: as for `write_json`.

    Raises:
        TypeError: JSON has no form for a value, and there is no ``default``.
    """
    plain = json.loads(json.dumps(content, ensure_ascii=False, default=default))
    return _text(plain, 0, 0) + "\n"


def _text(value: Any, indent: int, before: int) -> str:
    """A value in a line that begins with ``indent`` spaces and holds ``before`` characters in front of it."""
    if isinstance(value, dict) and value:
        keys = [json.dumps(key, ensure_ascii=False) + ": " for key in value]
        parts = [
            key + _text(item, indent + 4, indent + 4 + len(key)) for key, item in zip(keys, value.values(), strict=True)
        ]
        start, end = "{}"
    else:
        if not isinstance(value, list) or not _has_dictionary(value):
            line = json.dumps(value, ensure_ascii=False)
            if not isinstance(value, list) or not value or before + len(line) < WIDTH:
                return line
        parts = [_text(item, indent + 4, indent + 4) for item in value]
        start, end = "[]"
    inside = ",\n".join(" " * (indent + 4) + part for part in parts)
    return f"{start}\n{inside}\n{' ' * indent}{end}"


def _has_dictionary(value: list[Any]) -> bool:
    return any(isinstance(item, dict) or (isinstance(item, list) and _has_dictionary(item)) for item in value)
