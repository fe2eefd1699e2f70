"""Write overlays into a bundle's base files."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..checks import renamed_sentence
from ..json_files import read_json, to_json
from ..overlays import find_overlay, order_problems
from .metadata import described
from .targets import strings

__all__ = ["apply_overlays", "changed_configs"]

DATA_IDS = ("dataset_dir", "datalist", "pretrain_datalist")
# Config files that stand alone; `evaluate.json` and those of several GPUs are overlays on them.
BASE_FILES = ("pretrain.json", "train.json", "inference.json")


def apply_overlays(base: Mapping[str, Any], overlays: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge overlays into the config of a base file, as ``monai.bundle run`` does with a list of files.

    An overlay serves several base files. Changes to a part that this file lacks, and ids that nothing in it reads (such
    as the pretext in ``inference.json``), are left out.

    Raises:
        ValueError: a ``+`` entry does not match the type of its value.
    """
    from monai.bundle import ConfigParser
    from monai.bundle.utils import merge_kv

    parser = ConfigParser(config=copy.deepcopy(dict(base)))
    for overlay in overlays:
        for key, value in overlay.items():
            path = key.lstrip("+").replace("::", "#")
            there = path.rpartition("#")[0] if not key.startswith("+") else path
            if not there or there in parser:
                merge_kv(parser, key, copy.deepcopy(value))
    config: dict[str, Any] = parser.get()
    while True:
        others = {key: _references(value) for key, value in config.items()}
        unread = [key for key in config if key not in base and not any(key in o for k, o in others.items() if k != key)]
        if not unread:
            return config
        for key in unread:
            del config[key]


def changed_configs(bundle: Path, files: Sequence[Path], override: Mapping[str, Any]) -> dict[str, str]:
    """Text of the config files that overlays change, by file name.

    Raises:
        FileNotFoundError, ValueError: an overlay is missing, changes nothing or cannot be applied; ``prepare_as`` of
            ``override`` names no file with a record.
    """
    if not files and not override:
        return {}
    folder = bundle / "configs"
    if "prepare_as" in override:  # the file that it names may not come along
        from ..weights.prepare import with_preparation

        override = with_preparation(override, read_json(folder / "inference.json", {}))
    found = [find_overlay(path, bundle) for path in files]
    problems = order_problems(found, override)
    if problems:
        raise ValueError(" ".join(problems))
    overlays = [(path.name, _portable(path, bundle)) for path in found]
    overlays += [(f"--override {key}", {key: value}) for key, value in override.items()]
    bases = {name: read_json(folder / name) for name in BASE_FILES if (folder / name).is_file()}
    known = set().union(*bases.values(), *(_references(config) for config in bases.values()))
    evaluate = read_json(folder / "evaluate.json", {})
    known |= {key.split("#")[0] for key in evaluate}
    known |= {name for _, overlay in overlays for name in _references(overlay)}
    for source, overlay in overlays:
        for key in overlay:
            name = key.lstrip("+").replace("::", "#").split("#")[0]
            if name not in known:
                renamed = renamed_sentence(f"`{name}` in {source}", name, known)
                if renamed:
                    raise ValueError(renamed)
                raise ValueError(f"{source} sets `{key}`, but no base file of {bundle.name} has such an id.")
    changes = [overlay for _, overlay in overlays]
    schedules = [read_json(path) for path in found if path.parent.name == "schedules"]  # of fine-tuning alone
    others = [overlay for overlay in changes if overlay not in schedules]
    result = {
        name: apply_overlays(config, changes if name == "train.json" else others) for name, config in bases.items()
    }
    if "datalist" in bases.get("inference.json", {}):
        # A list of the data set that was trained on is none of the images to come, a folder of which is enough.
        lists = [{key: value for key, value in one.items() if key != "datalist"} for one in changes[: len(found)]]
        result["inference.json"] = apply_overlays(bases["inference.json"], [*lists, *changes[len(found) :]])
    if evaluate:
        result["evaluate.json"] = _overlay_overlay(evaluate, changes)
    if "inference.json" in result:
        metadata = read_json(folder / "metadata.json")
        result["metadata.json"] = described(metadata, result["inference.json"], bases["inference.json"])
    return {name: to_json(config) for name, config in result.items()}


def _portable(path: Path, bundle: Path) -> dict[str, Any]:
    """An overlay; if it is not the bundle's own, without paths to this machine's data."""
    content = read_json(path)
    if path.resolve().is_relative_to((bundle / "configs").resolve()):
        return content
    places = [key for key in DATA_IDS if os.path.isabs(str(content.get(key, "")))]
    return {key: value for key, value in content.items() if key not in places}


def _overlay_overlay(config: dict[str, Any], changes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Adapt ``evaluate.json`` if files that came after it are now written into ``train.json``, before it."""
    from monai.bundle.utils import merge_kv

    config = copy.deepcopy(config)
    for overlay in changes:
        for key, value in overlay.items():
            path = key.lstrip("+").replace("::", "#")
            if path in config:
                merge_kv(config, f"+{path}" if key.startswith("+") else path, copy.deepcopy(value))
            elif any(path.startswith(f"{own}#") for own in config):
                raise ValueError(f"`{key}` changes a part of what evaluate.json sets, which packing cannot do.")
    return config


def _references(value: Any) -> set[str]:
    """Top-level ids that a part of a config refers to."""
    return {name for _, text in strings(value) for name in re.findall(r"[@%](\w+)", text)}
