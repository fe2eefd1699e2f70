"""Datalists: JSON files that name the scans of a study and how they are split.

The format is the Medical Segmentation Decathlon's (Antonelli et al., Nature Communications 2022): lists `training`,
`validation` and `test` of items with an `image` (a file, a list of files with one modality each, or a DICOM folder), a
`label`, and if the study has them `age` in years, `diagnosis`, `domain` (the set an item comes from) and `subject`.
Paths are relative to the folder of the JSON file. Scans without a label may be in a list `unlabelled`. `label_scheme`
beside the lists may state how the label images are numbered (see `label_map`). The form of MONAI's Auto3DSeg is also
read: a list `testing` is the test list, and items may state the `fold` (from 0) that holds them out.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np

from ..dicom import holds_dicom
from ..grids import grid_problem
from ..json_files import read_json
from ..nifti import NiftiError, is_nifti, nifti_affine, read_nifti
from ..volumes import (
    VolumeError,
    first_line,
    format_shape,
    image_problem,
    label_problem,
    non_finite_problem,
    unknown_label_problem,
    whole_labels,
)
from .copies import find_copies, image_files

Item = dict[str, Any]
Problem = tuple[str, str]  # what is wrong with which file

SECTIONS = ("training", "validation", "test")
MAX_PROBLEMS_PRINTED = 20

OTHER_PEOPLE = "if these are other people, from another set, give its items a `domain`"
"""Advice if equal names of subjects are wrongly taken for one person (see `Items`)."""

_SPELLINGS = {"unlabelled": ("unlabelled", "unlabeled"), "unlabeled": ("unlabelled", "unlabeled")}
_NAMES = ("subject", "domain")  # keys that are not dropped where some items lack them
_ORIGIN = "__origin__"  # identity of an item for the draws: which datalist, and the image as written there
_LIST = "__list__"  # the list of the file that an item stands in


class Items(list[Item]):
    """A list of items that knows its subjects and the other lists of its datalist.

    `subjects` maps a digest of every subject to one of its images. If two datalists in one folder give items the same
    `subject` and `domain`, they mean one person. `lists` holds all lists of the datalist by name.
    """

    def __init__(
        self, items: Iterable[Item] = (), subjects: Mapping[str, str] | None = None, lists: Any = None
    ) -> None:
        super().__init__(items)
        self.subjects: dict[str, str] = dict(subjects or {})
        self.lists: dict[str, Items] = {} if lists is None else lists


class DatalistError(ValueError):
    """A datalist or its files cannot be used; the message lists every problem by file."""


def load_datalist(
    path: str | os.PathLike | Sequence[str | os.PathLike],
    base_dir: str | os.PathLike | Sequence[str | os.PathLike | None] | None = None,
    *,
    image_key: str = "image",
    label_key: str | None = "label",
    training_sections: Sequence[str] = ("training",),
    fold: int | None = None,
    num_folds: int | None = None,
    pool_test: bool = False,
    fraction: float = 1.0,
    validation_share: float | None = None,
    target_domain: str | None = None,
    target_masks: int | None = None,
    source_masks: int | None = None,
    whole_subjects: bool = False,
    required: Sequence[str] = (),
    seed: int = 0,
    split_seed: int | None = None,
    check: str = "header",
    num_classes: int | None = None,
    label_scheme: str | None = None,
    known_labels: Collection[int] | None = None,
) -> dict[str, Items]:
    """Read, split and check one datalist or several.

    Args:
        path: JSON file, or several that are merged list by list (for example a source and a target set).
        base_dir: folder that the paths of one datalist are relative to. For several datalists it is the folder of each
            JSON file, unless a list names a folder for each; `None`, also in the list, means the folder of the JSON
            file.
        image_key: key of the image in the file; it is returned as `image`.
        label_key: key of the label in the file, a path or a number; it is returned as `label`. `None`, for
            pre-training, drops labels and does not require them.
        training_sections: lists of the file that make up `training`; these are not returned as validation or test as
            well. `("training", "unlabelled")` pre-trains on all scans that are not held out. A list that the file lacks
            counts as empty, so this also works for files without unlabelled scans.
        fold: if given, training and validation (never test) are pooled and split again into `num_folds` parts by
            subject, or by image if an item has no `subject`; part `fold` becomes the validation list. Items of other
            lists in `training_sections` do not affect the draw, so pre-training and fine-tuning on one file hold out
            the same subjects. They are trained on unless their subject is held out. If items state a `fold` themselves,
            nothing is drawn: items with this number are held out.
        num_folds: number of parts to draw, by default 5. If the items state their folds, it must match their number.
        pool_test: with `fold`, the test list joins the pool; part `fold` becomes the test list, the next part the
            validation list and the other parts the training list. Each item is then tested once over all folds (the
            cross-validation of Jun et al., Medical Transformer, section 4.1.1). All items of the test list then need a
            label.
        fraction: share of the training list to keep, at least one item. With `target_domain` it applies to the items of
            that domain; all others stay. With one seed, the subset of a smaller fraction lies in that of a larger one.
        validation_share: share of the training subjects, at least one, to validate on. The validation list of the file
            is then not used, so only the training list needs labels.
        target_domain: value of `domain` that marks the target set. Validation and test then keep only its items, if
            their items have a domain.
        target_masks: number of training items of the target domain to keep, beside all items of other domains (Zhang et
            al., BIBM 2023, section IV-B). A smaller number gives a subset of a larger one. `None` keeps all. With 0 no
            label of the target is seen: validation then keeps the items of the other domains, if there are any.
        source_masks: number of training items of the other domains to keep (same paper, figure 8); `None` keeps all.
        whole_subjects: draw the items of `fraction`, `target_masks` and `source_masks` subject by subject, so that the
            next subject begins when all scans of the last one are in. By default scans are drawn, whosever they are,
            and few scans come from almost as many subjects. It changes nothing if each subject has one scan.
        required: lists that must not be empty in the result: those that the run trains on, validates or evaluates.
        seed: seed of every draw. Draws depend on the items, not on their order or the place of the file.
        split_seed: separate seed for the folds, so runs with several seeds hold out the same items; `None` uses `seed`.
        check: `"header"` checks existence, headers, shapes and affines; `"full"` also checks every voxel (not finite
            values, constant images of one file, labels); `"none"` checks nothing. `"header"` reads only the headers of
            NIfTI files. It checks that files of other formats exist, and that folders hold DICOM.
        num_classes: labels must lie in `[0, num_classes)`; always checked for numbers, and for images with `"full"`.
        label_scheme: numbering of the label images that the run expects (see `label_map`). A file with another
            `label_scheme` at its top level is refused. `None`, or a file without one, checks nothing.
        known_labels: the only values that label images may hold; checked with `"full"`. `None` checks nothing. Unlike
            `num_classes` it refers to the numbers in the files.

    Returns:
        The lists `training`, `validation` and `test` of items with absolute paths, in the order of the file. A list
        that the file lacks is empty. Keys that some items of a list lack are dropped from that list, since a batch
        needs the same keys; other keys are passed on unchanged. `subject` and `domain` are not dropped if some items
        have them: an item without a `subject` counts as a subject of its own, named after its image, and an item
        without a `domain` gets an empty one (`target_domain` in validation and test, where it counts as such). If one
        of these is text, numbers of other items under this key become text as well. The `subjects` of all items stay
        known (see `Items`).

    Raises:
        DatalistError: a file or folder is missing or wrong, a required list is empty, or the masks have another label
            scheme; one error lists all problems.
        ValueError: an argument is out of its range.
    """
    if check not in ("none", "header", "full"):
        raise ValueError(f'`check` is {check!r}; it must be "none", "header" or "full".')
    if not 0 < fraction <= 1:
        raise ValueError(f"`fraction` is {fraction}; it must be above 0 and at most 1.")
    if fraction < 1 and target_masks is not None:
        raise ValueError("`fraction` and `target_masks` both choose a part of the training list: set only one of them.")
    for name, count in (("target_masks", target_masks), ("source_masks", source_masks)):
        if count is not None and target_domain is None:
            raise ValueError(f"`{name}` counts items by their domain: set `target_domain` as well.")

    if pool_test and fold is None:
        raise ValueError("`pool_test` makes the test list one of the folds: set `fold` as well.")

    paths = [Path(path)] if isinstance(path, str | os.PathLike) else [Path(p) for p in path]
    where = ", ".join(str(p) for p in paths)
    problems: list[Problem] = []
    base_dirs = _base_dirs(base_dir, paths)
    lists = _merge(paths, base_dirs, image_key, label_key, training_sections, label_scheme, problems)
    if pool_test and label_key is not None:
        lacking = [x for x in lists["test"] if "label" not in x]
        problems += [(_image_name(x), f"has no {label_key!r}, and `pool_test` trains on test items") for x in lacking]
    raise_problems(problems, where)

    if fold is not None:
        _split(lists, fold, num_folds, pool_test, seed if split_seed is None else split_seed)
    # before draws, so that those of all sizes have the same keys
    known = {s: [key for key in _NAMES if any(x.get(key) is not None for x in lists[s])] for s in SECTIONS}
    problems += find_overlaps(lists, content=check != "none")
    if target_domain is not None:
        if fraction < 1:
            target = [x for x in lists["training"] if x.get("domain") == target_domain]
            target_masks = max(1, round(fraction * len(target)))
        lists["training"] = keep_target_masks(
            lists["training"], target_domain, target_masks, seed, source_masks, whole_subjects
        )
        for section in ("validation", "test"):
            of_target = [x.get("domain", target_domain) == target_domain for x in lists[section]]
            from_source = section == "validation" and target_masks == 0 and not all(of_target)
            lists[section] = [x for x, its in zip(lists[section], of_target, strict=True) if its != from_source]
    else:
        lists["training"] = keep_fraction(lists["training"], fraction, seed, whole_subjects)
    if validation_share is not None:
        items = lists["training"]
        judging = items  # validation is on the target domain, as above
        if target_domain is not None:
            judging = [x for x in items if (x.get("domain") == target_domain) != (target_masks == 0)]
        _, lists["validation"] = split_validation(judging, validation_share, seed)
        away = {_group(x) for x in lists["validation"]}
        lists["training"] = [x for x in items if _group(x) not in away]
        known["validation"] = known["training"]
    problems += [(where, _empty_list(name, target_domain)) for name in required if not lists[name]]
    problems += find_problems([x for section in SECTIONS for x in lists[section]], check, num_classes, known_labels)
    raise_problems(problems, where, _wrong_folder([file for file, _ in problems], paths, base_dirs))
    result: dict[str, Items] = {}
    for section in SECTIONS:
        subjects = _subject_digests(lists[section], base_dirs)
        no_domain = (target_domain or "") if section != "training" else ""
        named = _with_subjects_and_domains(lists[section], known[section], no_domain)
        result[section] = Items(_with_common_keys(named), subjects, result)
    return result


def _subject_digests(items: Sequence[Item], base_dirs: Sequence[Path]) -> dict[str, str]:
    digests: dict[str, str] = {}
    for item in items:
        key = _subject(item)
        if key is not None:
            named = json.dumps([os.path.realpath(base_dirs[key[0]]), *key[1:]])
            digests.setdefault(hashlib.sha256(named.encode()).hexdigest()[:16], _image_name(item))
    return digests


def _split(lists: dict[str, list[Item]], fold: int, num_folds: int | None, pool_test: bool, seed: int) -> None:
    """Make fold `fold` of the lists, in place."""
    pooled = SECTIONS if pool_test else SECTIONS[:2]
    taken = lists["training"] + lists["validation"] + (lists["test"] if pool_test else [])
    # Of files without a training list the lists that stand for it are split.
    pool = [x for x in taken if x[_LIST] in pooled or all(y[_LIST] != "training" for y in taken)]
    lists["training"], held_out = split_fold(pool, fold, num_folds, seed)
    if pool_test:
        lists["test"] = held_out
        count = _number_of_folds(_stated_folds(pool), num_folds)
        chosen = {id(x) for x in split_fold(pool, (fold + 1) % count, num_folds, seed)[1]}
        lists["validation"] = [x for x in lists["training"] if id(x) in chosen]
        lists["training"] = [x for x in lists["training"] if id(x) not in chosen]
    else:
        lists["validation"] = held_out
    drawn = {id(x) for x in pool}
    away = {_group(x) for section in SECTIONS[1:] for x in lists[section]}
    kept = drawn - {id(x) for section in SECTIONS[1:] for x in lists[section]}
    lists["training"] = [x for x in taken if id(x) in kept or (id(x) not in drawn and _group(x) not in away)]


def split_fold(
    items: Sequence[Item], fold: int, num_folds: int | None = None, seed: int = 0
) -> tuple[list[Item], list[Item]]:
    """Training and validation items of one fold; items of one subject stay together.

    Items that state a `fold` are split by it, and nothing is drawn. `num_folds` is 5 if nothing sets it.

    Raises:
        DatalistError: only some items state a fold, a fold is not a whole number, the numbers are not 0, 1 and so on,
            or there are not `num_folds` of them.
        ValueError: there is no such fold, or there are fewer subjects than folds.
    """
    stated = _stated_folds(items)
    count = _number_of_folds(stated, num_folds)
    if not 0 <= fold < count:
        what = "as the items of the datalist state their folds," if stated else f"with `num_folds` {count}"
        raise ValueError(f"`fold` is {fold}; {what} it must be from 0 to {count - 1}.")
    if stated:
        return [x for x in items if x["fold"] != fold], [x for x in items if x["fold"] == fold]
    groups = sorted({_group(x) for x in items})
    if len(groups) < count:
        raise ValueError(
            f"{len(groups)} subjects cannot be split into {count} folds; lower `num_folds` (config id "
            "`data#num_folds`)."
        )
    random.Random(seed).shuffle(groups)
    held_out = set(groups[fold::count])
    return [x for x in items if _group(x) not in held_out], [x for x in items if _group(x) in held_out]


def _number_of_folds(stated: Sequence[int], asked: int | None) -> int:
    count = len(set(stated))
    if count and asked not in (None, count):
        raise DatalistError(
            f"`num_folds` (config id `data#num_folds`) is {asked}, but the items of the datalist state {count} folds: "
            "leave out `num_folds`, or remove `fold` from the items to draw folds."
        )
    return count or (5 if asked is None else asked)


def _stated_folds(items: Sequence[Item]) -> list[int]:
    """The `fold` of each item; empty if none states one."""
    if not any("fold" in x for x in items):
        return []
    lacking = next((x for x in items if "fold" not in x), None)
    if lacking is not None:
        raise DatalistError(
            f"{_image_name(lacking)} states no `fold`, but other items of training and validation (and of test, with "
            "`pool_test`) do: state one for each item, or for none to draw them."
        )
    wrong = next((x for x in items if isinstance(x["fold"], bool) or not isinstance(x["fold"], int)), None)
    if wrong is not None:
        raise DatalistError(f"The `fold` of {_image_name(wrong)} is {wrong['fold']!r}: it must be a whole number.")
    numbers = sorted({x["fold"] for x in items})
    if numbers != list(range(len(numbers))):
        raise DatalistError(f"The items state the folds {', '.join(map(str, numbers))}: number them 0, 1 and so on.")
    return [x["fold"] for x in items]


def keep_fraction(items: Sequence[Item], fraction: float, seed: int = 0, whole_subjects: bool = False) -> list[Item]:
    """Keep a share of the items, at least one, in their order; a smaller fraction is a subset of a larger one.

    `whole_subjects` draws subject by subject (see `load_datalist`).
    """
    if fraction == 1 or not items:
        return list(items)
    return _draw(items, max(1, round(fraction * len(items))), seed, whole_subjects)


def split_validation(items: Sequence[Item], share: float, seed: int = 0) -> tuple[list[Item], list[Item]]:
    """Split items into training and validation, with a share of the subjects for validation.

    Raises:
        DatalistError: all items belong to one subject.
        ValueError: `share` does not lie between 0 and 1.
    """
    if not 0 < share < 1:
        raise ValueError(f"`validation_share` is {share}; it must be above 0 and below 1.")
    groups = sorted({_group(x) for x in items})
    if len(groups) < 2:
        raise DatalistError(
            f"With `validation_share` the {len(items)} training items are split by subject into training and "
            "validation, but they have fewer than two subjects: add some, or leave it out."
        )
    random.Random(seed).shuffle(groups)
    chosen = set(groups[: min(len(groups) - 1, max(1, round(share * len(groups))))])
    return [x for x in items if _group(x) not in chosen], [x for x in items if _group(x) in chosen]


def keep_target_masks(
    items: Sequence[Item],
    domain: str,
    masks: int | None,
    seed: int = 0,
    source_masks: int | None = None,
    whole_subjects: bool = False,
) -> list[Item]:
    """Keep `source_masks` items of other domains and `masks` items of `domain`, in their order; `None` keeps all.

    `whole_subjects` draws subject by subject (see `load_datalist`).

    Raises:
        DatalistError: `domain` has no item, or fewer than `masks`; the others are fewer than `source_masks`.
    """
    if source_masks is not None:
        source = [x for x in items if x.get("domain") != domain]
        if not 0 <= source_masks <= len(source):
            raise DatalistError(
                f"{source_masks} masks of other domains than {domain!r} are requested (config id "
                f"`source_masks`), but the training list has {len(source)}: set 0 to {len(source)}."
            )
        drawn = {id(x) for x in _draw(source, source_masks, seed, whole_subjects)}
        items = [x for x in items if x.get("domain") == domain or id(x) in drawn]
    target = [x for x in items if x.get("domain") == domain]
    if not target and masks != 0:
        known = ", ".join(sorted({str(x["domain"]) for x in items if "domain" in x})) or "none"
        raise DatalistError(
            f"No training item has the domain {domain!r} (config id `target_domain`); domains there are: {known}."
        )
    if masks is None:
        return list(items)
    if masks < 0 or masks > len(target):
        raise DatalistError(
            f"{masks} masks of the domain {domain!r} are requested (config id `target_masks`), but the "
            f"training list has {len(target)}: set 0 to {len(target)}."
        )
    kept = {id(x) for x in _draw(target, masks, seed, whole_subjects)}
    return [x for x in items if x.get("domain") != domain or id(x) in kept]


def find_overlaps(lists: dict[str, list[Item]], content: bool = True) -> list[Problem]:
    """Find images and subjects that are in more than one list.

    Images are compared by real path and, if requested, by content. A link to a test scan, or a copy of it, is that
    scan.
    """
    problems: list[Problem] = []
    first: dict[str, tuple[str, str]] = {}  # where a file stands, and by which name
    for section, items in lists.items():
        for item in items:
            for file in image_files([item]):
                where, other = first.setdefault(os.path.realpath(file), (section, file))
                if where == section:
                    continue
                text = f"leads to the same file as {other} in {where}: keep it in one list"
                same = f"the same image is in {where} and in {section}"
                problems.append((file, same if other == file else f"in {section} {text}"))
    told = {file for file, _ in problems}
    if content:
        problems += [p for p in find_copies(lists) if p[0] not in told]
    told = {file for file, _ in problems}
    subjects: dict[tuple, str] = {}
    reported: set[tuple] = set()
    for section, items in lists.items():
        for item in items:
            key = _subject(item)
            if key is None or subjects.setdefault(key, section) == section or key in reported:
                continue
            reported.add(key)
            if told.isdisjoint(image_files([item])):
                text = f"its subject {item['subject']!r} is in {subjects[key]} and in {section} ({OTHER_PEOPLE})"
                problems.append((_image_name(item), text))
    return problems


def find_problems(
    items: Sequence[Item],
    check: str = "header",
    num_classes: int | None = None,
    known_labels: Collection[int] | None = None,
) -> list[Problem]:
    """Find problems in the files of the items, with absolute paths; see `load_datalist` for `check`."""
    problems: list[Problem] = []
    for item in items:
        label = item.get("label")
        if isinstance(label, int | float):
            problems += _number_problems(_image_name(item), label, num_classes)
    if check == "none":
        return problems

    def look_at(item: Item) -> list[Problem]:
        return _item_problems(item, check == "full", num_classes, known_labels)

    # Mostly waiting for the file system and for zlib, which both release the GIL.
    with ThreadPoolExecutor(max_workers=8) as pool:
        for found in pool.map(look_at, items):
            problems += [p for p in found if p not in problems]
    return problems


def read_datalist(path: str | os.PathLike) -> dict[str, Any]:
    """Read a datalist file as written; a list `testing` becomes `test`.

    Raises:
        DatalistError: the file is missing, is not JSON, holds no list of items, or its `label_scheme` is no name.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise DatalistError(
            f"No dataset folder at {path.parent}: set the config id `dataset_dir` (or `datalist`) to the "
            "place of the data."
        )
    if not path.is_file():
        raise DatalistError(
            f"No datalist at {path}: set the config id `datalist` (or `dataset_dir`) to an existing file, or write one "
            "with `python -m common.data prepare`. Pre-training reads `pretrain_datalist` if the config has "
            "it; inference also takes a folder of scans: `--datalist FOLDER`."
        )
    content = read_dictionary(path)
    if "testing" in content:  # as MONAI's Auto3DSeg calls it
        if "test" in content:
            raise DatalistError(f"{path} has a list `test` and a list `testing`, which mean the same: keep one.")
        content["test"] = content.pop("testing")
    if "numbering" in content:  # as files of earlier versions have it
        content.setdefault("label_scheme", content.pop("numbering"))
    label_scheme = content.get("label_scheme")
    if not isinstance(label_scheme, str | None):
        raise DatalistError(f"{path}: `label_scheme` is {label_scheme!r}, which is no name; correct it.")
    if not any(isinstance(content.get(name), list) for name in (*SECTIONS, *_SPELLINGS)):
        raise DatalistError(f"{path} is not a datalist: it has none of the lists {', '.join(SECTIONS)}, unlabelled.")
    return content


def read_dictionary(path: str | os.PathLike) -> dict[str, Any]:
    """Read a dictionary from a JSON file; empty if it holds something else.

    Raises:
        DatalistError: the file cannot be read, or is not JSON.
    """
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        cause = error.__cause__ or error
        raise DatalistError(f"{path} cannot be read as JSON ({cause}): correct it or write it again.") from error
    return content if isinstance(content, dict) else {}


def base_folders(base_dir: Any, paths: Sequence[Path]) -> list[Path]:
    """Folder that the paths of each datalist are relative to; see `load_datalist`."""
    if base_dir is None or isinstance(base_dir, str | os.PathLike):
        # One folder cannot be that of several sets, each written beside its scans.
        base_dir = [base_dir if len(paths) == 1 else None] * len(paths)
    if len(base_dir) != len(paths):
        raise ValueError(
            f"`base_dir` names {len(base_dir)} folders for {len(paths)} datalists: give one each, or none for the "
            "folder of each."
        )
    return [p.parent if d is None else Path(d) for p, d in zip(paths, base_dir, strict=True)]


def _base_dirs(base_dir: Any, paths: Sequence[Path]) -> list[Path]:
    result = base_folders(base_dir, paths)
    for folder in result:
        if not folder.is_dir():
            raise DatalistError(
                f"No dataset folder at {folder}: set the config id `dataset_dir` to the place of the data."
            )
    return [folder.absolute() for folder in result]


def _merge(
    paths: Sequence[Path],
    base_dirs: Sequence[Path],
    image_key: str,
    label_key: str | None,
    training_sections: Sequence[str],
    label_scheme: str | None,
    problems: list[Problem],
) -> dict[str, list[Item]]:
    lists: dict[str, list[Item]] = {section: [] for section in SECTIONS}
    if isinstance(training_sections, str):
        training_sections = (training_sections,)
    missing = set(training_sections) - {*SECTIONS, *_SPELLINGS}
    for index, (path, base_dir) in enumerate(zip(paths, base_dirs, strict=True)):
        content = read_datalist(path)
        if label_scheme is not None and content.get("label_scheme", label_scheme) != label_scheme:
            raise DatalistError(
                f"The masks of {path} are numbered as {content['label_scheme']!r}, but the config id `label_scheme` is "
                f"{label_scheme!r}: set it to {content['label_scheme']!r}, or correct `label_scheme` in the file."
            )
        sources = {"training": list(dict.fromkeys(training_sections))}
        sources |= {name: [name] for name in SECTIONS[1:] if name not in training_sections}
        for section, names in sources.items():
            for name in dict.fromkeys(s for n in names for s in _SPELLINGS.get(n, (n,))):
                entries = content.get(name, [])
                missing -= {name} & set(content)
                if not isinstance(entries, list):
                    problems.append((str(path), f"{name!r} is no list"))
                    continue
                # The Decathlon's own test lists name images without labels.
                unlabelled = name == "test" and not any(isinstance(e, dict) and label_key in e for e in entries)
                key = None if unlabelled else label_key
                for number, entry in enumerate(entries):
                    item = datalist_item(entry, base_dir, image_key, key, problems, f"{path}: {name}[{number}]")
                    if item is not None:
                        item[_LIST] = name
                        item[_ORIGIN] = (index, json.dumps(entry[image_key] if isinstance(entry, dict) else entry))
                        lists[section].append(item)
    if missing:
        problems.append((", ".join(map(str, paths)), f"no list called {', '.join(sorted(map(repr, missing)))}"))
    return lists


def datalist_item(
    entry: Any, base_dir: Path, image_key: str, label_key: str | None, problems: list[Problem], where: str
) -> Item | None:
    """An item as it is written in a datalist, with absolute paths; `None` with a problem if it cannot be used."""
    if isinstance(entry, str):
        entry = {image_key: entry}
    if not isinstance(entry, dict):
        problems.append((where, "is neither a dictionary nor a path"))
        return None
    keys = [image_key] if label_key is None else [image_key, label_key]
    lacking = [key for key in keys if entry.get(key) in (None, "", [])]
    if lacking:
        problems.append((where, f"has no {' and no '.join(map(repr, lacking))}"))
        return None
    item = {k: v for k, v in entry.items() if k not in ("image", "label", image_key, label_key)}
    result: Item = {}
    for name, key in zip(("image", "label"), keys, strict=False):
        value = entry[key]
        if isinstance(value, str):
            result[name] = _absolute(base_dir, value)
        elif isinstance(value, list) and all(isinstance(v, str) for v in value):
            result[name] = [_absolute(base_dir, v) for v in value]
        elif name == "label" and isinstance(value, int | float) and not isinstance(value, bool):
            result[name] = value
        else:
            problems.append((where, f"{key!r} is {value!r}, which is not a path"))
            return None
    for name in ("subject", "domain", "diagnosis"):
        value = item.get(name)
        if not isinstance(value, str | int | float | None) or (isinstance(value, bool) and name != "diagnosis"):
            problems.append((where, f"{name!r} is {value!r}, which is neither a word nor a number"))
            return None
    return result | item


def _empty_list(name: str, target_domain: str | None) -> str:
    if target_domain is not None:
        return f"the list {name!r} has no items of the domain {target_domain!r}"
    advice = "; set `fold` to split one off the training list" if name == "validation" else ""
    return f"the list {name!r} is empty{advice}"


def _absolute(base_dir: Path, path: str) -> str:
    return os.path.normpath(base_dir / os.path.expanduser(path))


def _group(item: Item) -> tuple:
    return _subject(item) or (*item.get(_ORIGIN, (0, _image_name(item))),)


def _subject(item: Item) -> tuple | None:
    # The same number in two datalists, or in two domains of one, is not the same person.
    if item.get("subject") is None:
        return None
    return item.get(_ORIGIN, (0,))[0], str(item.get("domain", "")), str(item["subject"])


def _image_name(item: Item) -> str:
    image = item["image"]
    return image if isinstance(image, str) else image[0]


def _draw(items: Sequence[Item], count: int, seed: int, whole_subjects: bool) -> list[Item]:
    order = sorted(range(len(items)), key=lambda i: items[i].get(_ORIGIN, (0, _image_name(items[i]))))
    random.Random(seed).shuffle(order)
    if whole_subjects:
        turns: dict[tuple, int] = {}
        for i in order:
            turns.setdefault(_group(items[i]), len(turns))
        order.sort(key=lambda i: turns[_group(items[i])])
    return [items[i] for i in sorted(order[:count])]


def _with_subjects_and_domains(items: Sequence[Item], known: Collection[str], no_domain: str) -> list[Item]:
    """The items with a `subject` and a `domain` each if these are `known`, that is, if some items of their list have
    one; else without.

    What scans of one person are must not be lost with an item that lacks the key: they would count as independent. A
    key that is text in one item is text in all, since a batch cannot hold numbers and text.
    """
    lacking = [x for x in items if x.get("subject") is None]
    written = Counter(_written_name(x) for x in lacking)
    # The path as written does not change with the place of the data; those of two datalists may be equal.
    own = {id(x): name if written[name := _written_name(x)] == 1 else _image_name(x) for x in lacking}
    names: list[Item] = []
    for x in items:
        filled = {"subject": own.get(id(x)), "domain": no_domain}
        filled |= {key: x[key] for key in _NAMES if x.get(key) is not None}
        names.append({key: filled[key] for key in known})
    for key in known:
        if any(isinstance(x[key], str) for x in names):
            names = [x | {key: str(x[key])} for x in names]
    return [
        {k: v for k, v in x.items() if k not in _NAMES} | its_names for x, its_names in zip(items, names, strict=True)
    ]


def _written_name(item: Item) -> str:
    """The item's image, or its first, as the datalist has it."""
    image = json.loads(item[_ORIGIN][1])
    return str(image[0] if isinstance(image, list) else image)


def _with_common_keys(items: Sequence[Item]) -> list[Item]:
    common = set.intersection(*(set(x) for x in items)) - {_ORIGIN, _LIST} if items else set()
    return [{k: v for k, v in x.items() if k in common} for x in items]


def _number_problems(file: str, label: float, num_classes: int | None) -> list[Problem]:
    if not math.isfinite(label):
        return [(file, f"its label {label} is not finite")]
    if num_classes is not None and not (float(label).is_integer() and 0 <= label < num_classes):
        return [(file, f"its label {label} is not a whole number from 0 to {num_classes - 1}")]
    return []


def _item_problems(
    item: Item, full: bool, num_classes: int | None, known_labels: Collection[int] | None
) -> list[Problem]:
    def label_values(labels: np.ndarray) -> str | None:
        problem = label_problem(labels, num_classes)
        return problem if problem or known_labels is None else unknown_label_problem(labels, known_labels)

    problems: list[Problem] = []
    reference: tuple[str, Sequence[int], np.ndarray] | None = None
    label = item.get("label")
    labels = [] if label is None or isinstance(label, int | float) else [label] if isinstance(label, str) else label
    images = [item["image"]] if isinstance(item["image"], str) else item["image"]
    # Training takes the files of one item for one image, of which a part may be constant.
    image_values = image_problem if len(images) == 1 else non_finite_problem
    checks: Iterable[tuple[str, Callable[[np.ndarray], str | None]]] = [
        *((file, image_values) for file in images),
        *((file, label_values) for file in labels),
    ]
    for file, check_values in checks:
        problem = None
        try:
            volume = open_volume(file, full)
            if volume is not None:
                problem = shape_problem(volume.shape, check_values is label_values)
                if problem is None and reference is None:
                    reference = (file, volume.shape, volume.affine)
                elif problem is None and reference is not None:
                    problem = grid_problem(volume.shape, volume.affine, *reference)
                if problem is None and full:
                    values = volume.values()
                    problem = check_values(whole_labels(values, file) if check_values is label_values else values)
        except VolumeError as error:
            problem = str(error)
        if problem is not None:
            problems.append((file, problem))
    return problems


class Volume(NamedTuple):
    shape: Sequence[int]  # channels last where there are some
    affine: np.ndarray
    values: Callable[[], np.ndarray]


def open_volume(file: str, full: bool = True) -> Volume | None:
    """Open the volume of a file or DICOM folder; formats other than NIfTI only with `full`.

    Raises:
        VolumeError: it cannot be used.
    """
    if os.path.isdir(file):
        if not os.listdir(file):
            raise VolumeError("is an empty folder")
        if not holds_dicom(file):
            raise VolumeError("is a folder without DICOM files; name a file, or the folder of one series")
    elif not os.path.exists(file):
        raise VolumeError("does not exist")
    elif os.path.getsize(file) == 0:
        raise VolumeError("is empty (0 bytes)")
    elif is_nifti(file):
        return _open_nifti(file)
    if not full:
        return None
    from ..transforms.load_volume import read_volume  # brings ITK, which no list of NIfTI files needs

    volume = read_volume(file)
    shape = volume.shape[1:] if len(volume) == 1 else (*volume.shape[1:], len(volume))
    return Volume(shape, np.asarray(volume.affine), volume.numpy)


def _open_nifti(file: str) -> Volume:
    try:
        volume: Any = nib.load(file)
    except Exception as error:  # nibabel, zlib and the OS each raise their own kinds
        raise VolumeError(f"is not a readable NIfTI file ({first_line(error)})") from error
    if 0 in volume.shape:
        raise VolumeError(f"has no voxels (shape {volume.shape})")

    def values() -> np.ndarray:
        try:
            return np.asanyarray(read_nifti(file).dataobj)
        except NiftiError:
            raise
        except Exception as error:
            raise VolumeError(f"cannot be read to its end ({first_line(error)})") from error

    return Volume(volume.shape, nifti_affine(file, volume), values)


def shape_problem(shape: Sequence[int], is_label: bool) -> str | None:
    if len(shape) < 3 or len(shape) > 4:
        return f"has {len(shape)} axes ({format_shape(shape)}), but a volume has 3, and a fourth for channels"
    if is_label and len(shape) == 4 and shape[3] != 1:
        return (
            f"has {shape[3]} channels ({format_shape(shape)}), but a mask has one, with a number for each "
            "class: merge the channels (argmax)"
        )
    return None


def _wrong_folder(files: Sequence[str], paths: Sequence[Path], base_dirs: Sequence[Path]) -> str:
    """What to say if files that are missing in the folder that was given lie beside their datalist."""
    for path, folder in zip(paths, base_dirs, strict=True):
        missing = [Path(file) for file in files if Path(file).is_relative_to(folder) and not os.path.exists(file)]
        if any((path.parent / file.relative_to(folder)).exists() for file in missing):
            return (
                f" Files that are missing in {folder} lie beside {path}: set `dataset_dir` to {path.parent.absolute()}."
            )
    return ""


def raise_problems(problems: Sequence[Problem], where: str, advice: str = "") -> None:
    if not problems:
        return
    files: dict[str, list[str]] = {}
    for file, text in problems:
        files.setdefault(file, []).append(text)
    lines = [f"  {file}: {'; '.join(dict.fromkeys(texts))}" for file, texts in files.items()]
    if len(lines) > MAX_PROBLEMS_PRINTED:
        lines = [*lines[:MAX_PROBLEMS_PRINTED], f"  and {len(lines) - MAX_PROBLEMS_PRINTED} more"]
    count = f"{len(files)} files or items" if len(files) > 1 else "1 file or item"
    raise DatalistError(
        f"{count} of the datalist {where} cannot be used:\n" + "\n".join(lines) + "\nCorrect these files or take them "
        "out of the datalist; its paths are relative to its folder unless `base_dir` (config id `dataset_dir`) is set."
        + advice
    )
