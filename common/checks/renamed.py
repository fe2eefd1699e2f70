"""Names of earlier versions and their present names: ids of configs, and targets of ``_target_``."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

__all__ = ["RENAMED", "renamed_problems", "renamed_sentence", "renamed_target"]

RENAMED = {
    "cache_rate": ("cache", "where volumes are kept (auto, memory, disk, gpu, none)"),
    "domains": ("pretrain_datalist", "a list of datalists, each with what its labels mean"),
    "map_numbering": ("map_label_scheme", "how label maps are numbered (freesurfer, dlmuse, ...)"),
    "numbering": ("label_scheme", "how the masks are numbered (freesurfer, dlmuse, ...)"),
    "warmup_epochs": ("warmup", "a fraction of all steps (0.05) or a whole number of optimiser steps"),
    "warmup_steps": ("warmup", "a fraction of all steps (0.05) or a whole number of optimiser steps"),
}
"""Ids that were given another name and meaning."""
TARGETS = {
    "data.prepare_image": "data.prepare_pretext_batch",
    "networks.whole_weights": "networks.require_strict",
    "transforms.Canvasd": "transforms.PadOrCropd",
    "transforms.MirroredLayout": "transforms.KeepFolderTree",
    "transforms.Targetd": "transforms.EncodeTargetd",
}
"""Parts of the package that a config may name."""


def renamed_target(target: str) -> str | None:
    """The present name of a ``_target_`` of an earlier version; None if the name is still valid."""
    for package in ("common", __package__.rpartition(".")[0]):
        new = TARGETS.get(target.removeprefix(f"{package}."))
        if new and target.startswith(f"{package}."):
            return f"{package}.{new}"
    return None


def renamed_sentence(typed: str, name: str, known: Collection[str], prefix: str = "") -> str | None:
    """Say that an id was renamed, and to what; None if none of the known names replaces it.

    Args:
        typed: how the user wrote the id; the sentence begins with it.
        name: the id.
        known: names that are read here.
        prefix: what the user writes before a name on this command line, if anything.
    """
    new, meaning = RENAMED.get(name, ("", ""))
    if new not in known:
        return None
    return f"{typed} was renamed: it is {f'{prefix}{new}' if prefix else f'`{new}`'} now, {meaning}."


def renamed_problems(config: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each renamed name in the merged files, since the old name would not be found."""
    ids = [renamed_sentence(f"`{name}` in the config files", name, config) for name in config]
    problems = [sentence for sentence in ids if sentence]
    for target in dict.fromkeys(_targets(config)):
        new_target = renamed_target(target)
        if new_target:
            problems.append(f"`{target}` in the config files was renamed: it is `{new_target}` now.")
    return problems


def _targets(part: Any) -> Iterator[str]:
    if isinstance(part, Mapping):
        if isinstance(part.get("_target_"), str):
            yield part["_target_"]
        part = list(part.values())
    if isinstance(part, list | tuple):
        for item in part:
            yield from _targets(item)
