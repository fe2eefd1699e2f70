"""The rules of MONAI's model zoo for a bundle, from its contribution guide and its checks of pull requests."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..json_files import read_json

__all__ = ["zoo_problems"]

LARGEST_FILE = 25 * 10**6
"""Largest size in bytes of a file in the zoo's repository; larger files need an address in ``large_files.yml``."""
SUFFIXES = ("json", "yaml", "yml")
# What each config has to define, "a#b" inside of "a"; a part whose parent is missing is not asked for.
INFERENCE = ("bundle_root", "device", "network_def", "inferer", "output_dir")
TRAIN = ("bundle_root", "device", "dataset_dir", "output_dir", "val_interval")
WITHIN_TRAIN = (
    *(f"train#{name}" for name in ("trainer", "trainer#max_epochs", "dataset", "dataset#data", "handlers", "inferer")),
    *(f"validate#{name}" for name in ("evaluator", "handlers", "dataset", "dataset#data", "inferer", "key_metric")),
)


def zoo_problems(folder: Path, schema: Mapping[str, Any] | None = None) -> list[str]:
    """One sentence for each rule that the bundle in ``folder`` breaks.

    The network's inputs and outputs and the export to TorchScript are left to MONAI's own ``verify_net_in_out`` and
    ``ckpt_export``.

    Args:
        folder: a packed bundle.
        schema: the JSON schema that ``metadata.json`` names; without it, or without ``jsonschema``, it is not checked.

    Raises:
        ValueError: a config of the bundle is not JSON.
    """
    problems = [f"{name} is missing." for name in ("LICENSE", "configs/metadata.json") if not (folder / name).is_file()]
    listed = _listed(folder)
    if not (folder / "models/model.pt").is_file() and "models/model.pt" not in listed:
        problems.append("models/model.pt is missing, also in large_files.yml (--weights, --weights-url).")
    pages = ("docs/README.md", "docs/data_license.txt")
    problems += [f"{name} is missing or empty." for name in pages if not _filled(folder / name)]
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.stat().st_size > LARGEST_FILE:
            problems.append(f"{path.relative_to(folder)} is above 25 MB: give its address (--weights-url).")
    if (folder / "configs/metadata.json").is_file():
        problems += _metadata_problems(read_json(folder / "configs/metadata.json"), schema)
    inference = _config(folder, "inference")
    problems += (
        ["configs/inference.json is missing."] if inference is None else _lacks("inference", inference, INFERENCE)
    )
    train = _config(folder, "train")
    if train is not None:
        wanted = [name for name in WITHIN_TRAIN if name.partition("#")[0] in train]
        problems += _lacks("train", train, (*TRAIN, *wanted))
    return problems


def _filled(path: Path) -> bool:
    return path.is_file() and bool(path.read_text(encoding="utf-8").strip())


def _listed(folder: Path) -> set[str]:
    """Files with an address in ``large_files``."""
    found = [folder / f"large_files.{suffix}" for suffix in SUFFIXES]
    text = "".join(path.read_text(encoding="utf-8") for path in found if path.is_file())
    return set(re.findall(r"[\"']?path[\"']?:\s*[\"']?([^\"'\n,}]+)", text))


def _metadata_problems(metadata: Mapping[str, Any], schema: Mapping[str, Any] | None) -> Iterator[str]:
    version, log = metadata.get("version"), metadata.get("changelog")
    if version is None or not isinstance(log, dict):
        yield "configs/metadata.json has no version or no changelog."
    elif version not in log:
        yield f"configs/metadata.json: the changelog does not have version {version}."
    for key, how in (("eval_metrics", "measured scores (--scores)"), ("supported_apps", "names and versions of apps")):
        if not metadata.get(key):
            yield f"configs/metadata.json: {key} is empty; it needs {how}."
    if schema is not None:
        try:
            from jsonschema import Draft7Validator
        except ImportError:
            return
        for error in Draft7Validator(schema).iter_errors(metadata):
            where = "/".join(str(part) for part in error.absolute_path)
            yield f"configs/metadata.json does not keep its schema: {where + ': ' if where else ''}{error.message}."


def _config(folder: Path, name: str) -> dict[str, Any] | None:
    path = folder / "configs" / f"{name}.json"
    return read_json(path) if path.is_file() else None


def _lacks(name: str, config: Mapping[str, Any], wanted: tuple[str, ...]) -> Iterator[str]:
    for key in wanted:
        part: Any = config
        for step in key.split("#"):
            part = part.get(step) if isinstance(part, dict) else None
        if part is None:
            yield f"configs/{name}.json does not define {key}."
