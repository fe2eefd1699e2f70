"""Translation of the label numberings of brain MRI sets into the classes of the segmentation tasks.

The tables stand beside this file in `label_maps/`. Each numbering says which of its labels make up which structure;
`structures.json` says once, for all numberings, to which tissue class a structure belongs (its `rule` in words). So
the same region gets the same class wherever a mask comes from.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

_TABLES = Path(__file__).with_name("label_maps")
_TISSUES = {1: "cortex", 2: "subcortical grey matter", 3: "white matter", 4: "CSF"}

NUMBERINGS = ("binary", "dlmuse", "freesurfer", "malpem", "oasis_seg35", "oasis_seg4", "task")
TASKS = ("skull", "structures4", "structures33")


def label_map(numbering: str, task: str) -> dict[int, list[int]]:
    """Source labels of each class of a task, background included.

    Args:
        numbering: how the masks at hand are numbered. `freesurfer`: aseg or aparc+aseg. `oasis_seg35`, `oasis_seg4`:
            the 35 structures and four tissues of the neurite version of OASIS-1. `malpem`: the 138 regions of MALP-EM
            (ADNI). `dlmuse`: MUSE region numbers. `binary`: a brain mask, 1 to 255 is brain.
            `task`: the task's own classes, as in predictions of its network and in masks drawn or corrected on them.
        task: `skull` has one class, brain tissue and CSF. `structures4` has 1 cortex, 2 subcortical grey matter,
            3 white matter, 4 CSF. `structures33` has the structures of `oasis_seg35` without the choroid plexuses,
            1 to 33 in their order (Zhang et al., BIBM 2023, section IV-A).

    Returns:
        Class -> its source labels, for every class. A class that the numbering lacks has an empty list; 0 has the
        labels that the numbering knows and the task leaves to the background, so that all others can be told as
        unknown.

    Raises:
        ValueError: the numbering or the task is unknown, or the numbering has no class of the task at all.
    """
    _check("numbering", numbering, NUMBERINGS)
    classes = label_names(task)
    if numbering == "task":
        return {index: [index] if index else [] for index in classes}
    table = _read(numbering)
    groups: dict[int, list[int]] = {index: [] for index in classes if index > 0}
    if task == "skull":
        for key in ("structures", "tissues", "skull"):
            for labels in table.get(key, {}).values():
                groups[1] += labels
    elif task == "structures4":
        tissue_of = _read("structures")["structures"]
        for structure, labels in table.get("structures", {}).items():
            groups[tissue_of[structure]] += labels
        for tissue, labels in table.get("tissues", {}).items():
            groups[int(tissue)] += labels
    else:
        for index in groups:
            groups[index] += table.get("structures", {}).get(classes[index], [])
    if not any(groups.values()):
        raise ValueError(f"Masks numbered as {numbering!r} hold no class of the task {task!r}: choose another task.")
    named = {label for labels in groups.values() for label in labels}
    known = {
        label for key in ("structures", "tissues", "skull") for part in table.get(key, {}).values() for label in part
    }
    groups[0] = [label for label in known - named if label != 0]
    return {index: sorted(groups[index]) for index in sorted(groups)}


def label_names(task: str) -> dict[int, str]:
    """Names of the classes of a task, with 0 for the background.

    Raises:
        ValueError: the task is unknown.
    """
    _check("task", task, TASKS)
    names = {
        "skull": ["brain"],
        "structures4": list(_TISSUES.values()),
        "structures33": _read("structures")["structures33"],
    }[task]
    return dict(enumerate(["background", *names]))


@cache
def _read(name: str) -> dict[str, Any]:
    return json.loads((_TABLES / f"{name}.json").read_text(encoding="utf-8"))


def _check(what: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise ValueError(f"Unknown {what} {name!r}; known are {', '.join(known)}.")
