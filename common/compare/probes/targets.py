"""The targets of a probe: the items of a datalist with a target, and its values."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.bundle import ConfigParser
from monai.utils import ensure_tuple

from ...data.datalist import base_folders, read_datalist

logger = logging.getLogger(__name__)

Item = dict[str, Any]


def split_by_target(parser: ConfigParser, target: str) -> tuple[list[Item], list[Item]]:
    """Training and test items with the target."""
    written: dict[Any, Any] = {}
    datalist = datalist_name(parser)
    if _is_load_datalist(parser):
        if target != "label":
            parser["data#label_key"] = None
            written = _written_targets(parser, target)
        parser["data#required"] = ["training", "test"]  # validation is not used
    data = parser.get_parsed_content("data")
    parts = []
    for name in ("training", "test"):
        # load_datalist keeps a key only where all items of a list have it.
        items = [{**x, target: x.get(target, written.get(ensure_tuple(x["image"])))} for x in data[name]]
        kept = [x for x in items if not _is_missing(x[target])]
        if len(kept) < len(items):
            logger.info(
                "%d of %d %s items have no %r and are left out.", len(items) - len(kept), len(items), name, target
            )
        parts.append(kept)
    training, test = parts
    needed = 1 if target == "label" and training and isinstance(training[0]["label"], str | list) else 2
    for name, items, number in (("training", training, needed), ("test", test, 1)):
        if len(items) < number:
            raise ValueError(
                f"the {name} list of {datalist} has {len(items)} item{'' if len(items) == 1 else 's'} with "
                f"{target!r}, but a probe needs at least {number}; give more items a {target!r}, or choose "
                "another target."
            )
    values = {json.dumps(x[target], sort_keys=True) for x in training}
    if needed == 2 and len(values) == 1:
        raise ValueError(
            f"all {len(training)} training items of {datalist} have the same {target!r}, {values.pop()}; a probe needs "
            "at least two classes or numbers."
        )
    return training, test


def _is_load_datalist(parser: ConfigParser) -> bool:
    return str(parser.get("data#_target_")).endswith(".load_datalist")  # a packed bundle has `common` renamed


def datalist_name(parser: ConfigParser) -> str:
    """Name of the datalist for an error."""
    return str(parser.get_parsed_content("data#path")) if _is_load_datalist(parser) else "the config id `data`"


def _written_targets(parser: ConfigParser, target: str) -> dict[Any, Any]:
    """The target of every image of the datalist files, by its absolute path or paths."""
    arguments = {
        key: parser.get_parsed_content(f"data#{key}") for key in ("path", "base_dir") if f"data#{key}" in parser
    }
    image_key = parser.get("data#image_key", "image")
    paths = [Path(path) for path in ensure_tuple(arguments["path"])]
    targets = {}
    for path, base_dir in zip(paths, base_folders(arguments.get("base_dir"), paths), strict=True):
        folder = base_dir.absolute()
        for entries in read_datalist(path).values():
            for entry in entries if isinstance(entries, list) else []:
                if isinstance(entry, dict) and image_key in entry and target in entry:
                    files = [os.path.normpath(folder / Path(x).expanduser()) for x in ensure_tuple(entry[image_key])]
                    targets[tuple(files)] = entry[target]
    return targets


def _is_missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def as_targets(values: Sequence[Any], target: str, kind: str | None) -> np.ndarray:
    """Numbers as float64, classes as text."""
    if kind not in (None, "class", "number"):
        raise ValueError(f"`kind` is {kind!r}; it must be class or number.")
    strange = next((x for x in values if not isinstance(x, str | int | float)), None)
    if strange is not None:
        raise ValueError(f"the target {target!r} is {strange!r} for one item; it must be a number or text.")
    numeric = not any(isinstance(x, str | bool) for x in values)
    if kind == "number" and not numeric:
        raise ValueError(f"the target {target!r} is not a number for every item; set `kind` to class.")
    if kind is None:
        kind = "number" if numeric and not all(isinstance(x, int) and 0 <= x <= 9 for x in values) else "class"
    return np.array(values, dtype=np.float64) if kind == "number" else np.array([str(x) for x in values])
