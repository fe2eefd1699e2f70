"""Translate the label schemes of public data sets to the classes of segmentation tasks.

The tables are in `label_maps/` beside this file. Each label scheme lists the labels of each structure.
`structures.json` maps structures to tissue classes once for all label schemes of brain MRI (its `rule` explains it). So
a region gets the same class from any kind of mask. `classes.json` names the classes of the other tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ..json_files import read_json

_TABLES = Path(__file__).with_name("label_maps")
_TISSUES = {1: "cortex", 2: "subcortical grey matter", 3: "white matter", 4: "CSF"}

_STRUCTURES = ("structures33", "structures34")
_PARTS = ("structures", "tissues", "skull", "classes", "surroundings")  # of a table: name -> labels

LABEL_SCHEMES = (
    "binary",
    "brats2020",
    "btcv",
    "dlmuse",
    "freesurfer",
    "malpem",
    "msd_brats",
    "msd_heart",
    "msd_hippocampus",
    "msd_liver",
    "msd_pancreas",
    "msd_prostate",
    "msd_spleen",
    "msd_vessel",
    "oasis_seg35",
    "oasis_seg4",
    "task",
    "visceral",
)
TASKS = (
    "skull",
    "structures4",
    "structures33",
    "structures34",
    "organs8",
    "organs13",
    "hippocampus",
    "brats",
    "lung",
    "liver",
    "heart",
    "prostate",
    "pancreas",
    "vessel",
    "spleen",
    "acdc",
    "liver_tumour",
    "lung_tumour",
    "colon",
)


def label_map(label_scheme: str, task: str, num_classes: int | None = None) -> dict[int, list[int]]:
    """Source labels of each class of a task, background included.

    Args:
        label_scheme: how the masks are numbered. `freesurfer`: aseg or aparc+aseg. `oasis_seg35`, `oasis_seg4`: the 35
            structures and four tissues of the neurite version of OASIS-1. `malpem`: the 138 regions of MALP-EM (ADNI).
            `dlmuse`: MUSE region numbers. `binary`: a brain mask, 1 to 255 is brain. `btcv`: the 13 organs of BTCV
            (Synapse). `msd_hippocampus`, `msd_brats` and the like: the Decathlon's Task04, Task01 and others.
            `brats2020`: BraTS of 2017 to 2022.
            `visceral`: RadLex identifiers, as in VISCERAL. `task`: the task's own
            classes, as in predictions of its network and in masks made from them.
        task: `skull` has one class, brain tissue and CSF. `structures4` has 1 cortex, 2 subcortical grey matter, 3
            white matter, 4 CSF. `structures33` has the structures of `oasis_seg35` without the choroid plexuses, 1 to
            33 in their order (Zhang et al., BIBM 2023, section IV-A); `structures34` has the same and 34, the CSF
            outside of the ventricles. `organs13` has the organs of `btcv`, `organs8` the eight of them that TransUNet
            (arXiv 2102.04306, section 4.1) evaluates: 1 spleen, 2 right kidney, 3 left kidney, 4 gallbladder, 5 liver,
            6 stomach, 7 aorta, 8 pancreas. `hippocampus` has 1 anterior, 2 posterior; `brats` 1 edema, 2 non-enhancing
            tumour core, 3 enhancing tumour; `liver` the liver with its tumours as one class, `liver_tumour` both apart;
            `lung` the lungs, `lung_tumour` and `colon` the tumours of the Decathlon's sets; `acdc`, `heart`,
            `prostate`, `pancreas`, `vessel`, `spleen` have the classes that `label_names` lists.
        num_classes: number of classes of the network, background included; compared with the task if given.

    Returns:
        Class -> its source labels, for every class. A class that the label scheme lacks has an empty list. 0 has the
        labels of the label scheme that the task counts as background, so all other labels can be reported as unknown.

    Raises:
        ValueError: the label scheme or the task is unknown, the label scheme has no class of the task at all, or the
            task has another number of classes.
    """
    _check("label scheme", label_scheme, LABEL_SCHEMES)
    classes = label_names(task)
    if num_classes not in (None, len(classes)):
        raise ValueError(
            f"num_classes is {num_classes}, but the task {task!r} has {len(classes)} classes with the "
            "background: leave out num_classes, since the task sets it, or set the intended task."
        )
    if label_scheme == "task":
        return {index: [index] if index else [] for index in classes}
    table = _read(label_scheme)
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
        part = table.get("structures" if task in _STRUCTURES else "classes", {})
        for index in groups:
            groups[index] += part.get(classes[index], [])
    if not any(groups.values()):
        raise ValueError(f"Masks numbered as {label_scheme!r} hold no class of the task {task!r}: choose another task.")
    named = {label for labels in groups.values() for label in labels}
    groups[0] = [label for label in known_labels(label_scheme) - named if label != 0]
    return {index: sorted(groups[index]) for index in sorted(groups)}


def class_of_label(groups: Mapping[int, Sequence[int]]) -> list[int]:
    """The class of each label, from label 0 to the largest label of a class: the inverse of `label_map`.

    Args:
        groups: class -> its source labels. A label of no class is background, 0.
    """
    table = [0] * (1 + max((label for labels in groups.values() for label in labels), default=0))
    for number, labels in groups.items():
        for label in labels:
            table[label] = int(number)
    return table


def sided_labels(label_scheme: str, task: str) -> list[list[int]]:
    """Pairs of labels, left and right, to swap in a mirrored head or body.

    The sides of the heart are no such pair, since their parts differ in more than the side.

    Args:
        label_scheme, task: as of ``label_map``.

    Raises:
        ValueError: the label scheme is unknown, or it is ``task`` and the task is unknown.
    """
    named = _named(label_scheme, task)
    pairs: list[list[int]] = []
    for name, labels in named.items():
        other = other_side(name)
        if other is not None:
            pairs += [list(pair) for pair in zip(labels, named.get(other, []), strict=True)]
    return sorted(pairs)


def other_side(name: str) -> str | None:
    """The name on the right of a structure on the left; None for other names, and for sides of the heart."""
    side, part = name[:5].lower(), name[5:]
    if side not in ("left-", "left ") or part in ("atrium", "ventricle"):
        return None
    return ("Right-" if name.startswith("L") else "right ") + part


def fluid_labels(label_scheme: str, task: str) -> list[int]:
    """Labels of the CSF around the brain, with the ventricles if the scheme does not separate the two.

    Arguments and errors are those of ``sided_labels``.
    """
    return _named(label_scheme, task).get("CSF", [])


def surrounding_labels(label_scheme: str) -> list[int]:
    """Labels around the brain, such as skull and scalp, which every task counts as background.

    Raises:
        ValueError: the label scheme is unknown.
    """
    _check("label scheme", label_scheme, LABEL_SCHEMES)
    parts = {} if label_scheme == "task" else _read(label_scheme).get("surroundings", {})
    return [label for labels in parts.values() for label in labels]


def labels_written_in(written_in: str, label_scheme: str, labels: Sequence[Any]) -> Sequence[Any]:
    """Check that labels in a config fit the label maps, and return them unchanged.

    Args:
        written_in: the label scheme of ``labels``.
        label_scheme: the label scheme of the label maps.
        labels: numbers, or groups of them.

    Raises:
        ValueError: the label maps have another numbering, so the labels would mean other structures.
    """
    if written_in != label_scheme:
        raise ValueError(
            f"The label maps are numbered as {label_scheme!r} and the labels {list(labels)} as {written_in!r}: write "
            "them in the numbers of the label maps (`known` and `known_share`, `folds`), or leave out the "
            "preset or data set that states them."
        )
    return labels


def known_labels(label_scheme: str) -> set[int]:
    """Every label of a label scheme other than `task`, including 0 and labels that a task ignores.

    Raises:
        ValueError: the label scheme is unknown.
    """
    _check("label scheme", label_scheme, LABEL_SCHEMES)
    table = _read(label_scheme)
    return {0} | {label for key in _PARTS for labels in table.get(key, {}).values() for label in labels}


def task_labels(label_scheme: str, task: str) -> list[int]:
    """Every label that masks of a label scheme may hold for a task, 0 included; arguments and errors of `label_map`."""
    return sorted({0}.union(*label_map(label_scheme, task).values()))


def label_names(task: str) -> dict[int, str]:
    """Names of the classes of a task, with 0 for the background.

    Raises:
        ValueError: the task is unknown.
    """
    _check("task", task, TASKS)
    if task == "skull":
        names = ["brain"]
    elif task == "structures4":
        names = list(_TISSUES.values())
    else:
        names = _read("structures" if task in _STRUCTURES else "classes")[task]
    return dict(enumerate(["background", *names]))


def num_classes(task: str) -> int:
    """Number of classes of a task, background included: channels of a network for it.

    Raises:
        ValueError: the task is unknown.
    """
    try:
        return len(label_names(task))
    except ValueError as error:
        raise ValueError(f"{error} For a task of your own set num_classes, the background included.") from None


def _named(label_scheme: str, task: str) -> dict[str, list[int]]:
    """Labels by the name of their structure, tissue or class."""
    _check("label scheme", label_scheme, LABEL_SCHEMES)
    if label_scheme == "task":
        return {name: [number] for number, name in label_names(task).items() if number}
    table = _read(label_scheme)
    tissues = {_TISSUES[int(number)]: labels for number, labels in table.get("tissues", {}).items()}
    return tissues | table.get("structures", {}) | table.get("classes", {})


@cache
def _read(name: str) -> dict[str, Any]:
    return read_json(_TABLES / f"{name}.json")


def _check(what: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise ValueError(f"Unknown {what} {name!r}; known are {', '.join(known)}.")
