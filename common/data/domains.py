"""Several data sets as domains, to train a net with one branch per data set (Med3D's 3DSeg-8).

A domain is a mapping with a `name`, a `datalist`, and what its labels mean: either `num_classes`, where the masks hold
0 to `num_classes` - 1 as they are, or `label_scheme` and `task` (see `label_map`); with `surroundings`, what surrounds
the brain in that scheme, such as skull and scalp, are classes of their own behind the task's. It may state a
`dataset_dir` that the paths are relative to (by default the datalist's folder), a `label_key`, a `channel` of images
with several, and a `spacing` in mm in place of the median of its scans. The number of a domain in its list is that of
its branch.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ..checks import renamed_sentence
from ..volumes import VolumeError
from .datalist import (
    SECTIONS,
    DatalistError,
    Item,
    Items,
    find_overlaps,
    load_datalist,
    open_volume,
    raise_problems,
    read_datalist,
)
from .label_maps import label_map, surrounding_labels

KEYS = (
    "name",
    "datalist",
    "dataset_dir",
    "label_key",
    "num_classes",
    "label_scheme",
    "task",
    "surroundings",
    "channel",
    "spacing",
)

_OPPOSITE = {"L": "R", "P": "A", "I": "S"}

Domain = Mapping[str, Any]


def load_domains(
    domains: Sequence[Domain],
    *,
    training_sections: Sequence[str] = ("training",),
    fraction: float = 1.0,
    fold: int | None = None,
    num_folds: int | None = None,
    required: Sequence[str] = (),
    seed: int = 0,
    split_seed: int | None = None,
    check: str = "header",
) -> dict[str, Items]:
    """Read, split and check the datalists of all domains.

    Args:
        domains: see the module.
        training_sections: lists of each file that make up `training`.
        fraction: share of each domain's training list, at least one item.
        fold, num_folds: as in `load_datalist`, in each domain.
        required: lists that must not be empty in any domain.
        seed, split_seed, check: as in `load_datalist`; `"full"` also finds labels outside of a domain's classes.

    Returns:
        The lists `training`, `validation` and `test`, domain after domain, of items with `image`, `label`, `domain`
        (its name), `branch` (its number) and `channel` (0 if a domain names none).

    Raises:
        DatalistError: a domain has no labels, a file is missing or wrong, or a required list is empty; the message
            names the domain. A scan is in the training list of one domain and in the validation list of another.
        ValueError: a domain lacks a key, has an unknown key, or has the name of another domain.
    """
    _check(domains)
    lists: dict[str, Items] = {}
    lists |= {section: Items(lists=lists) for section in SECTIONS}
    label_maps = domain_label_maps(domains)
    for branch, domain in enumerate(domains):
        key = domain.get("label_key", "label")
        _check_labels(domain, key, training_sections)
        try:
            found = load_datalist(
                domain["datalist"],
                domain.get("dataset_dir"),
                label_key=key,
                training_sections=training_sections,
                fraction=fraction,
                fold=fold,
                num_folds=num_folds,
                seed=seed,
                split_seed=split_seed,
                check=check,
                label_scheme=domain.get("label_scheme"),
                known_labels={0}.union(*label_maps[domain["name"]].values()),
            )
        except DatalistError as error:
            raise DatalistError(f"Domain {domain['name']!r}: {error}") from error
        for name in required:
            if not found[name]:  # not left to load_datalist, which does not name the domain
                raise DatalistError(
                    f"Domain {domain['name']!r}: the list {name!r} of {domain['datalist']} is empty, but every "
                    "domain needs one: move items there, or write the file again with `python -m common.data "
                    "prepare`."
                )
        own = {"domain": domain["name"], "branch": branch, "channel": domain.get("channel", 0)}
        for section, items in found.items():
            lists[section] += [{"image": x["image"], "label": x["label"], **own} for x in items if "label" in x]
            lists[section].subjects |= found[section].subjects
    # Each file was checked by itself; one scan with two kinds of masks must be in one list of both.
    learnt = {section: list(lists[section]) for section in ("training", "validation")}
    raise_problems(find_overlaps(learnt, content=check != "none"), ", ".join(domain_datalists(domains)))
    return lists


def domain_datalists(domains: Sequence[Domain]) -> list[str]:
    """Paths of the domains' datalists, in their order."""
    _check(domains)
    return [str(domain["datalist"]) for domain in domains]


def domain_classes(domains: Sequence[Domain]) -> list[int]:
    """Number of classes of each domain, background included."""
    return [len(groups) for groups in domain_label_maps(domains).values()]


def domain_label_maps(domains: Sequence[Domain]) -> dict[str, dict[int, list[int]]]:
    """Name of each domain -> class -> its source labels, for `common.transforms.MapLabelsd`.

    With `other="error"` that transform refuses labels outside of the domain's classes.
    """
    _check(domains)
    maps = {}
    for domain in domains:
        if "num_classes" in domain:
            maps[domain["name"]] = {number: [number] for number in range(domain["num_classes"])}
        else:
            groups = label_map(domain["label_scheme"], domain["task"])
            around = surrounding_labels(domain["label_scheme"]) if domain.get("surroundings") else []
            groups[0] = [label for label in groups[0] if label not in around]
            groups |= {len(groups) + number: [label] for number, label in enumerate(around)}
            maps[domain["name"]] = groups
    return maps


def domain_spacings(
    items: Sequence[Item], domains: Sequence[Domain], orientation: str = "RAS"
) -> dict[str, list[float]]:
    """Name of each domain -> the spacing that it states, or the median over its items (`median_spacing`).

    Chen et al., arXiv 1904.00625, section 3.1, interpolate each volume to the median spacing of its domain.
    """
    _check(domains)
    return {
        domain["name"]: [float(x) for x in domain["spacing"]]
        if domain.get("spacing")
        else median_spacing([x for x in items if x["domain"] == domain["name"]], orientation)
        for domain in domains
    }


def median_spacing(items: Sequence[Item], orientation: str = "RAS", statistic: str = "median") -> list[float]:
    """Median of the scans' spacings, axis by axis, in mm.

    Args:
        items: items with an `image`; the first of several files counts. Only headers are read from NIfTI files; other
            files are read completely.
        orientation: orientation of the axes, as `Orientationd` will turn the scans.
        statistic: `"median"` or `"mean"` (for LiTS: Chen et al., section 3.3).

    Raises:
        ValueError: there are no items, or the statistic is unknown.
        VolumeError: a file cannot be read, its header has no possible geometry, or slices of a DICOM series are missing
            or uneven; names the file.
    """
    if not items:
        raise ValueError(
            "The domain has no training items, so there is no median spacing: add scans to it, or state its `spacing`."
        )
    if statistic not in ("median", "mean"):
        raise ValueError(f'`statistic` is {statistic!r}; it must be "median" or "mean".')
    if sorted("RAS".find(_OPPOSITE.get(letter, letter)) for letter in orientation) != [0, 1, 2]:
        raise ValueError(
            f"`orientation` is {orientation!r}; it must name three axes, one of R and L, one of A and P, one "
            "of S and I, such as RAS."
        )
    target = nib.orientations.axcodes2ornt(orientation)
    spacings = []
    for item in items:
        image = item["image"] if isinstance(item["image"], str) else item["image"][0]
        affine = _affine(image)
        turn = nib.orientations.ornt_transform(nib.orientations.io_orientation(affine), target)
        # Row i of `turn` says which axis of the target the scan's axis i becomes.
        own = np.sqrt((np.asarray(affine)[:3, :3] ** 2).sum(0))
        spacings.append(own[np.argsort(turn[:, 0])])
    reduce = np.median if statistic == "median" else np.mean
    # Headers hold single precision: 1.1999999 is 1.2.
    return [round(float(value), 5) for value in reduce(np.array(spacings), axis=0)]


def _affine(file: str) -> np.ndarray:
    try:
        volume = open_volume(file)
    except VolumeError as error:
        raise VolumeError(f"{file}: {str(error).removesuffix('.')}.") from error
    assert volume is not None  # opened in full
    return volume.affine


def _check_labels(domain: Domain, key: str, sections: Sequence[str]) -> None:
    """Check for domains without labels first: that is one mistake, not hundreds."""
    content = read_datalist(domain["datalist"])
    entries = [entry for section in sections for entry in content.get(section) or []]
    labels = [entry[key] for entry in entries if isinstance(entry, Mapping) and entry.get(key) not in (None, "", [])]
    where = (
        f"The domain {domain['name']!r} has no label images: no item of {', '.join(sections)} in {domain['datalist']}"
    )
    if entries and not any(isinstance(label, (str, list)) for label in labels):
        raise DatalistError(
            f"{where} has one under {key!r}. Pre-training here is supervised: take the domain out of "
            "`pretrain_datalist`, or set its `label_key`."
        )


def _check(domains: Sequence[Domain]) -> None:
    if isinstance(domains, str) or not all(isinstance(domain, Mapping) for domain in domains):
        raise ValueError(
            f"`pretrain_datalist` is {domains!r}; labels are learnt here, so it must list mappings, one per "
            'datalist: [{"name": "a", "datalist": "a.json", "num_classes": 3}].'
        )
    if not domains:
        raise ValueError("There are no domains: give `pretrain_datalist` at least one.")
    names: list[str] = []
    for number, domain in enumerate(domains):
        at = f"Domain {domain.get('name', number)!r}"
        for key in domain:
            if key not in KEYS:
                renamed = renamed_sentence(f"{at}: `{key}`", key, KEYS)
                if renamed:
                    raise ValueError(renamed)
                near = difflib.get_close_matches(key, KEYS, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(KEYS)}."
                raise ValueError(f"{at} has an unknown key {key!r}; {hint}")
        for key in ("name", "datalist"):
            if not domain.get(key):
                raise ValueError(f"{at} has no {key!r}.")
        if ("num_classes" in domain) == ("label_scheme" in domain and "task" in domain):
            raise ValueError(
                f"{at} needs either `num_classes` or both `label_scheme` and `task`, to say what labels mean."
            )
        if domain["name"] in names:
            raise ValueError(f"Two domains are called {domain['name']!r}: give them different names.")
        names.append(domain["name"])


def print_spacing(
    path: str | Path,
    base_dir: str | None = None,
    orientation: str = "RAS",
    statistic: str = "median",
    section: str = "training",
) -> None:
    """Print the median (or mean) spacing of a datalist's scans, to set the config id `spacing` by.

    Args:
        path: the datalist.
        base_dir: folder that its paths are relative to; by default its own.
        orientation: orientation of the axes.
        statistic: median or mean.
        section: list of the datalist: training, validation, test or unlabelled.

    Raises:
        DatalistError: the datalist has no such list, or it is empty.
        ValueError: the orientation or the statistic is invalid.
    """
    if section not in (*SECTIONS, "unlabelled"):
        raise DatalistError(f"--section {section}: it must be one of {', '.join(SECTIONS)}, unlabelled.")
    lists = load_datalist(
        path, base_dir, label_key=None, training_sections=[section], required=["training"], check="header"
    )
    items = lists["training"]
    print(" x ".join(f"{value:g}" for value in median_spacing(items, orientation, statistic)) + f" mm ({orientation})")
