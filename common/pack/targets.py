"""Change the names of ``common`` in a bundle's configs to those in a packed bundle."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from ..checks import renamed_target
from .modules import target_problem

__all__ = ["config_targets", "rewrite_config", "strings"]

# Before anything else, so that `initialize` finds `scripts` from any working folder: MONAI adds the bundle's folder to
# the import path only after it.
ADD_BUNDLE_TO_PATH = '{"_target_": "site.addsitedir", "sitedir": "@bundle_root"}'


def rewrite_config(text: str, name: str) -> str:
    """Replace ``common.`` with ``scripts.common.`` in every ``_target_`` of a config.

    Args:
        text: content of the config file.
        name: name of the file for errors.

    Raises:
        ValueError: a ``_target_`` names a part that ``common`` lacks, or another entry refers to ``common``.
    """
    new = re.sub(r'("_target_"\s*:\s*")common\.', r"\1scripts.common.", text)
    new = re.sub(r'"initialize"\s*:\s*\[(\s*)(?!\])', rf'"initialize": [\1{ADD_BUNDLE_TO_PATH},\1', new)
    for where, value in strings(json.loads(new)):
        if where[-1:] == ("_target_",) and value.startswith("scripts.common."):
            target = value.removeprefix("scripts.")
            new_name = renamed_target(target)
            problem = f"that is {new_name} now" if new_name else target_problem(target)
            if problem:
                raise ValueError(f"{name}: `{'#'.join(where)}` names {target}, and {problem}.")
        elif "_desc_" not in where and re.search(r"(?<![\w./])common\.[a-z_]|\b(import|from)\s+common\b", value):
            raise ValueError(
                f"{name}: `{'#'.join(where)}` refers to common in `{value}`, where packing cannot change it; "
                "name the object in a `_target_`."
            )
    return new


def config_targets(text: str) -> set[str]:
    """Every ``_target_`` from ``rewrite_config`` that names the collection's code."""
    found = {value for where, value in strings(json.loads(text)) if where[-1:] == ("_target_",)}
    return {target.removeprefix("scripts.") for target in found if target.startswith("scripts.common.")}


def strings(value: Any, where: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every string in a part of a config, with the keys that lead to it."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from strings(item, (*where, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from strings(item, (*where, str(index)))
