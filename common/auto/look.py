"""Find scans and masks in a user's folders, pair them, and check every file."""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np

from ..data.copies import same_content
from ..data.datalist import find_problems, open_volume, shape_problem
from ..data.label_maps import known_labels, label_map, label_names
from ..data.prepare.files import read_table, some
from ..durations import format_duration
from ..grids import stored_grid_problem
from ..nifti import is_nifti
from ..volumes import VolumeError, label_problem, whole_labels
from .layouts import Found, Layout, find_layout
from .study import MIN_SUBJECTS, Case, LabelVolume, Study, StudyError, of_head_size
from .subjects import find_subjects

__all__ = ["look"]

MOST_LABELS = 250
"""Largest number of values in a mask; a file with more is a scan. Brain parcellations have up to 200."""
SAY_EVERY = 5.0
"""Seconds between two lines of progress."""
T = TypeVar("T")
_ATLASES = ("dlmuse", "freesurfer", "malpem", "oasis_seg35")


def look(
    images: str | os.PathLike,
    masks: str | os.PathLike | None = None,
    subject: str | None = None,
    names: Mapping[int, str] | None = None,
    say: Callable[[str], None] | None = None,
) -> Study:
    """Find scans and masks, pair them, find their subjects, and check every file.

    It reads NIfTI, NRRD, MetaImage and folders of one DICOM series each. They may be in two folders with equal names
    (except for the ending and words such as `_seg`, `_mask`, `_label`), in one folder, in the layout of nnU-Net, the
    Decathlon or BIDS, or named by a datalist. Unusable files are left out and listed. It reads every voxel of a mask,
    and the part of a scan that `scan_facts` needs.

    Args:
        images: folder of the scans, or of a layout that holds scans and masks, or a datalist (JSON).
        masks: folder of the masks, if they are not in the layout.
        subject: regular expression that finds the subject in a scan's path below `images`, without its ending: its
            first group, else the whole match. Without it, see `find_subjects`.
        names: label of the masks -> its name; replaces a table beside the scans.
        say: gets a line of progress every few seconds.

    Returns:
        The findings. If they are too few to train on, `Study.refusal` says so.

    Raises:
        StudyError: there is no scan, no mask belongs to a scan, no file can be used, or no mask holds a label of
            `names`, or the names of the scans have two readings (see `find_subjects`).
        DatalistError: a JSON file cannot be read, or `subject` finds nothing in a path.
    """
    try:
        layout = find_layout(_path(images), None if masks is None else _path(masks))
    except PermissionError as error:
        raise StudyError(
            f"{error.filename} cannot be read ({error.strerror}): ask for the right to read it."
        ) from error
    _one_grid(layout)
    subjects, grouping = find_subjects(layout.cases, subject, layout.subjects, layout.root)
    reasons: list[tuple[Path, str]] = []
    whose = dict(zip((id(x) for x in layout.cases), subjects, strict=True))
    found = _sound(layout.cases, reasons, say)
    found = _without_copies(found, reasons)
    cases = _read(found, [whose[id(x)] for x in found], reasons, say)
    cases = _of_equal_channels(cases, reasons)
    had_masks = any(x.mask for x in layout.cases)
    if not cases or (had_masks and not any(case.mask for case in cases)):
        _refuse(layout, reasons, had_masks)
    count = cases[0].facts.channels
    if len(layout.channels) != count:  # in one file
        layout.channels = tuple(f"channel {i}" for i in range(count)) if count > 1 else ("image",)
    volumes = _volumes_of_labels(cases)
    if had_masks and not volumes:
        raise StudyError(
            f"The masks hold no structure, {sum(x.mask is not None for x in cases)} of them only background "
            f"(0), such as {next(x.mask for x in cases if x.mask)}: give masks with 1, 2, ... for the "
            "structures."
        )
    named = _names(layout, volumes, names or {})
    label_scheme, possible_scheme = layout.label_scheme, None
    if label_scheme is None:
        label_scheme, possible_scheme = _label_scheme(volumes, cases, named)
    notes = [*layout.notes, *_notes(cases, volumes, layout, label_scheme)]
    if possible_scheme:
        notes.append(
            f"The masks may be numbered like {possible_scheme}, but their labels do not prove it, so each is learnt as "
            "a class: --task structures34 merges them if they are."
        )
    return Study(
        layout.name,
        tuple(cases),
        layout.channels,
        named,
        volumes,
        (*layout.left_out, *reasons),
        tuple(notes),
        grouping,
        label_scheme,
        possible_scheme,
    )


def _path(path: str | os.PathLike) -> Path:
    return Path(os.path.abspath(os.path.expanduser(path)))


def _item(case: Found, files: Sequence[Path] | None = None, mask: bool = True) -> dict[str, Any]:
    item: dict[str, Any] = {"image": [str(p) for p in files or case.images]}
    return item | ({"label": str(case.mask)} if mask and case.mask else {})


def _one_grid(layout: Layout) -> None:
    """If the contrasts of most cases lie on different grids, keep the one that the masks are drawn on."""
    several = [x for x in layout.cases if len(x.images) > 1]
    if not several:
        return
    apart = [x for x in several if any(_off_grid(text) for _, text in find_problems([_item(x, mask=False)]))]
    if 2 * len(apart) <= len(several):
        return
    count = len(layout.channels)
    masked = [x for x in several if x.mask]
    wrong = [sum(bool(find_problems([_item(x, x.images[i : i + 1])])) for x in masked) for i in range(count)]
    best = wrong.index(min(wrong))
    layout.notes.append(
        f"The contrasts {', '.join(layout.channels)} lie on different grids (such as those of "
        f"{apart[0].images[0]}), so only {layout.channels[best]} is used: register and resample the "
        "others to it to add them."
    )
    layout.cases = [x._replace(images=(x.images[best],)) if len(x.images) > 1 else x for x in layout.cases]
    layout.channels = (layout.channels[best],)


def _off_grid(problem: str) -> bool:
    return "has the shape" in problem or "mm away from" in problem


def _told(results: Iterable[T], total: int, what: str, say: Callable[[str], None] | None) -> Iterator[T]:
    """The results, with a line of progress every `SAY_EVERY` seconds."""
    begin = last = time.monotonic()
    for number, result in enumerate(results, 1):
        yield result
        now = time.monotonic()
        if say and now - last > SAY_EVERY and number < total:
            left = (now - begin) / number * (total - number)
            say(f"{what} {number} of {total} scans; about {format_duration(left)} left")
            last = now


def _sound(
    cases: Sequence[Found], reasons: list[tuple[Path, str]], say: Callable[[str], None] | None = None
) -> list[Found]:
    """Keep cases with valid headers that fit together."""
    with ThreadPoolExecutor(max_workers=4) as pool:
        checked = pool.map(lambda x: find_problems([_item(x)], "header"), cases)
        results = list(_told(checked, len(cases), "Checked the headers of", say))
    for problems in results:
        for file, text in problems[:1]:
            advice = ": copy the scan's header to the mask if both are on one grid" if "affines differ" in text else ""
            reasons.append((Path(file), f"{text}{advice}"))
    return [x for x, problems in zip(cases, results, strict=True) if not problems]


def _without_copies(cases: Sequence[Found], reasons: list[tuple[Path, str]]) -> list[Found]:
    """Keep one of several equal scans, the first with a mask: one scan under two names could be in two lists."""
    order = sorted(cases, key=lambda x: x.mask is None)
    owner = {str(p): x for x in order for p in x.images}
    copies = set()
    for first, *rest in same_content(list(owner)):
        for file in rest:
            if owner[file] is not owner[first] and id(owner[file]) not in copies:
                copies.add(id(owner[file]))
                reasons.append((Path(file), f"is a copy of {first}"))
    return [x for x in cases if id(x) not in copies]


def _read(
    cases: Sequence[Found],
    subjects: Sequence[str],
    reasons: list[tuple[Path, str]],
    say: Callable[[str], None] | None = None,
) -> list[Case]:
    """Cases with the facts of their scans and the volumes of their labels."""

    def read(pair: tuple[Found, str]) -> Case | tuple[Path, str]:
        from ..fingerprint import scan_facts  # brings ITK

        case, subject = pair
        try:
            facts = scan_facts(case.images if len(case.images) > 1 else case.images[0])
        except VolumeError as error:
            return case.images[0], str(error)
        try:
            volumes = _label_volumes(case) if case.mask else {}
        except VolumeError as error:
            assert case.mask is not None
            return case.mask, str(error)
        return Case(case.name, subject, case.images, case.mask, facts, case.section, volumes)

    # Unpacking releases the GIL.
    with ThreadPoolExecutor(max_workers=4) as pool:
        facts = pool.map(read, zip(cases, subjects, strict=True))
        results = list(_told(facts, len(cases), "Read", say))
    reasons += [x for x in results if isinstance(x, tuple)]
    return [x for x in results if isinstance(x, Case)]


def _label_volumes(case: Found) -> dict[int, float]:
    """Label -> its volume in ml.

    Raises:
        VolumeError: the mask cannot be used.
    """
    file = str(case.mask)
    if os.path.isdir(file):
        raise VolumeError("is a mask in DICOM, which cannot be read: convert it to NIfTI on the grid of its scan")
    mask = open_volume(file)
    assert mask is not None  # opened in full
    problem = shape_problem(mask.shape, True)
    if problem is None and not (is_nifti(file) and all(is_nifti(p) for p in case.images)):
        # Of other formats the headers were not compared.
        scan = open_volume(str(case.images[0]))
        assert scan is not None
        problem = stored_grid_problem(mask.shape, mask.affine, str(case.images[0]), scan.shape, scan.affine)
    if problem is None:
        values = whole_labels(mask.values(), file)
        problem = label_problem(values)
        if problem and "not whole numbers" in problem:
            problem += ": draw whole numbers; masks are resampled with nearest neighbours"
    if problem:
        raise VolumeError(problem)
    labels, counts = _counts(values)
    if len(labels) > MOST_LABELS:
        raise VolumeError(f"has {len(labels)} different values, like a scan, not a mask")
    if len(labels) == 1 and labels[0] != 0:
        raise VolumeError(f"is {labels[0]} everywhere, without background (0)")
    ml = abs(float(np.linalg.det(mask.affine[:3, :3]))) / 1000
    return {int(label): int(n) * ml for label, n in zip(labels, counts, strict=True) if label != 0}


def _counts(values: np.ndarray) -> tuple[Sequence[int], Sequence[int]]:
    """The distinct whole numbers, from 0 on, and their counts."""
    most = int(values.max())
    if most > 1 << 20:  # too long a table, as of RadLex numbers
        labels, counts = np.unique(values, return_counts=True)
        return labels.astype(int).tolist(), counts.tolist()
    counts = np.bincount(values.astype(np.int64, copy=False).ravel(order="K"), minlength=most + 1)
    labels = counts.nonzero()[0]
    return labels.tolist(), counts[labels].tolist()


def _of_equal_channels(cases: Sequence[Case], reasons: list[tuple[Path, str]]) -> list[Case]:
    """Keep cases with as many channels as most cases with masks."""
    judged = [x for x in cases if x.mask] or cases
    if not judged:
        return []
    count = Counter(x.facts.channels for x in judged).most_common(1)[0][0]
    reasons += [
        (x.images[0], f"has {x.facts.channels} channels, but others have {count}")
        for x in cases
        if x.facts.channels != count
    ]
    return [x for x in cases if x.facts.channels == count]


def _refuse(layout: Layout, reasons: Sequence[tuple[Path, str]], had_masks: bool) -> None:
    file, reason = next(((f, r) for f, r in reasons if any(f == x.mask for x in layout.cases)), reasons[0])
    what = "masks" if had_masks else "scans"
    total = sum(x.mask is not None for x in layout.cases) if had_masks else len(layout.cases)
    swapped = " (are scans and masks swapped?)" if "like a scan, not a mask" in reason or "not whole" in reason else ""
    raise StudyError(f"None of the {total} {what} can be used{swapped}: {file} {reason}.")


def _volumes_of_labels(cases: Sequence[Case]) -> dict[int, LabelVolume]:
    found: dict[int, list[float]] = {}
    for case in cases:
        for label, ml in case.volumes.items():
            found.setdefault(label, []).append(ml)
    return {label: LabelVolume(median(found[label]), len(found[label])) for label in sorted(found)}


def _names(layout: Layout, found: Mapping[int, LabelVolume], given: Mapping[int, str]) -> dict[int, str]:
    """Names of the labels: as given, else from `dataset.json` or a table beside the scans."""
    absent = sorted(set(given) - set(found))
    if absent:
        raise StudyError(
            f"No mask holds the label {absent[0]}, which `names` calls {given[absent[0]]}: the masks have "
            f"{some(sorted(found), 40) or 'none'}."
        )
    named = dict(layout.labels)
    if not named:
        tables = ("*dseg.tsv", "labels.tsv", "labels.csv", "*_dict.csv")
        for row in read_table(layout.root, tables) or read_table(layout.root.parent, tables):
            label = next((row[key] for key in ("index", "label", "value", "id") if row.get(key, "").isdecimal()), None)
            if label is not None and row.get("name"):
                named[int(label)] = row["name"]
        if 2 * len(named.keys() & set(found)) < len(found):
            named = {}
    named |= given
    return {label: named.get(label, f"label {label}") for label in found}


def _label_scheme(
    found: Mapping[int, LabelVolume], cases: Sequence[Case], named: Mapping[int, str]
) -> tuple[str | None, str | None]:
    """The atlas of the masks' numbers, and else the one that it may be.

    It is the only atlas with all their labels, of which they hold at least half, for MR scans of the size of a head. An
    atlas that counts from 1 without gaps has the numbers of any other such list, so it is at best possible. Names that
    are not the atlas's own rule it out.
    """
    fits = [
        name for name in _ATLASES if found.keys() <= known_labels(name) and 2 * len(found) >= len(known_labels(name))
    ]
    facts = [x.facts for x in cases if x.mask]
    if (
        len(fits) != 1
        or len(found) <= 20
        or not of_head_size(facts)
        or 2 * sum(x.modality == "CT" for x in facts) > len(facts)
    ):
        return None, None
    stated = {label: name for label, name in named.items() if name != f"label {label}"}
    if stated and not _names_fit(stated, fits[0]):
        return None, None
    labels = known_labels(fits[0]) - {0}
    return (None, fits[0]) if labels == set(range(1, len(labels) + 1)) else (fits[0], None)


def _names_fit(stated: Mapping[int, str], atlas: str) -> bool:
    """Whether at least half of the names share a word with the atlas's, where it has one that all tables use.

    The parcels of the cortex and the white matter have names of their own in each table.
    """
    classes = label_names("structures34")
    of_label = {label: classes[k] for k, labels in label_map(atlas, "structures34").items() if k for label in labels}
    judged = [
        (set(re.findall("[a-z]{4,}", of_label[label].lower())) - {"left", "right"}, name.lower())
        for label, name in stated.items()
        if label in of_label and "Cerebral" not in of_label[label]
    ]
    return bool(judged) and 2 * sum(any(word in name for word in words) for words, name in judged) >= len(judged)


def _notes(cases: Sequence[Case], found: dict[int, LabelVolume], layout: Layout, label_scheme: str | None) -> list[str]:
    masked = [x for x in cases if x.mask]
    notes = []
    if {1, 255} == found.keys():
        odd = min(
            ({1: 0, 255: 0} | Counter(next(iter(x.volumes)) for x in masked if len(x.volumes) == 1)).items(),
            key=lambda pair: pair[1],
        )[0]
        file = next((x.mask for x in masked if odd in x.volumes), None)
        if not any(len(x.volumes) == 2 for x in masked):
            raise StudyError(
                f"Some masks have 1 for the structure and some 255 ({file} has {odd}), which would be two "
                "classes: write 1 in all."
            )
    if found.keys() == {255}:
        notes.append("The masks have 255 for the structure, which becomes class 1.")
    elif 255 in found and label_scheme is None and len(found) < 100:
        notes.append(
            f"The label 255 occurs beside {some(sorted(found.keys() - {255}))} and is learnt as a separate "
            "class: if it means `ignore`, remove it from the masks."
        )
    elif found and len(found) <= 20 and list(found) != list(range(1, len(found) + 1)) and label_scheme is None:
        notes.append(f"The labels {some(list(found))} become the classes 1 to {len(found)}.")
    if label_scheme and not layout.label_scheme:
        notes.append(f"The masks are numbered like {label_scheme}, judging by their labels.")
    empty = [x for x in masked if not x.volumes]
    if empty:
        notes.append(f"{len(empty)} of {len(masked)} masks hold only background, such as {empty[0].mask}.")
    rare = [label for label, volume in found.items() if volume.cases == 1] if len(masked) >= MIN_SUBJECTS else []
    if rare:
        file = next(x.mask for x in masked if rare[0] in x.volumes)
        what = f"The label {rare[0]} is" if len(rare) == 1 else f"The labels {some(rare)} are"
        notes.append(
            f"{what} in one mask alone{'' if len(rare) == 1 else ' each'} ({file}): correct it if it is a "
            "slip; a class in one mask cannot be both learnt and tested."
        )
    kinds = _kinds(masked)
    if len(kinds) > 1 and not rare:
        (labels, one), (others, other) = kinds[:2]
        notes.append(
            f"Some masks share no label with others: {one.mask} has {some(labels)}, {other.mask} has {some(others)}. "
            "If each leaves out what the other shows, the background of one contains the structures of the other."
        )
    lacking = [f"{label} {name}" for label, name in layout.labels.items() if label not in found]
    if lacking and found:
        notes.append(f"No mask holds {some(lacking)}, which {layout.root / 'dataset.json'} names.")
    return notes


def _kinds(cases: Sequence[Case]) -> list[tuple[list[int], Case]]:
    """Sets of labels that occur together in masks, directly or through others, each with one of its cases."""
    kinds: list[tuple[set[int], Case]] = []
    for case in cases:
        own = set(case.volumes)
        if own:
            joined = [kind for kind in kinds if kind[0] & own]
            kinds = [kind for kind in kinds if not kind[0] & own]
            kinds.append((own.union(*(labels for labels, _ in joined)), joined[0][1] if joined else case))
    return [(sorted(labels), case) for labels, case in kinds]
