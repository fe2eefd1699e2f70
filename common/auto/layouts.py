"""Find scans and masks, and which belong together, by the places and names of files.

Nothing is read here except `dataset.json`, datalists, and the first bytes of files that may be DICOM.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..data.datalist import SECTIONS, read_datalist, read_dictionary
from ..data.prepare.bids import belongs
from ..data.prepare.decathlon import channel_cases, names_its_files
from ..data.prepare.files import MASK_FOLDER, is_mask_folder, read_table, some, stem
from ..data.prepare.subjects import CONTRASTS, has_visit
from ..dicom import holds_dicom
from ..files import VOLUME_ENDINGS, without_ending
from .study import StudyError

__all__ = ["Found", "Layout", "find_layout"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words in names that say what a file is, not which scan it is.
_MASK_WORDS = _words(
    "seg segs segm mask masks label labels gt groundtruth truth segmentation segmentations annotation annotations "
    "manual dseg roi rois contour contours delineation msk lesion lesions"
)
_SCAN_WORDS = _words("img imgs image images scan scans vol volume volumes orig imaging data raw")
_WORD_AND_NUMBER = re.compile(rf"({'|'.join(sorted(_MASK_WORDS | _SCAN_WORDS, key=len, reverse=True))})(\d+)")
_SCAN_FOLDER = re.compile(r"(img|image|scan|vol|volume)s?(Tr|Ts)?", re.IGNORECASE)
_MASK_ENDING = re.compile(rf"[_\-. ]({'|'.join(sorted(_MASK_WORDS, key=len, reverse=True))})$", re.IGNORECASE)
_NO_SCANS = {
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"), "pictures"),
    **dict.fromkeys((".npy", ".npz", ".mat", ".h5", ".hdf5", ".pt"), "arrays without voxel sizes"),
    **dict.fromkeys((".hdr", ".img"), "Analyze files"),
    **dict.fromkeys((".mgz", ".mgh"), "FreeSurfer files"),
}
MOST_GUESSED = 5
"""Largest number of guessed pairs that a note lists."""
_RESULTS = ("study.txt", "datalist.json", "unlabelled.json")
"""Files in the output folder of an automatic run."""
_BIDS_FOLDERS = ("anat", "dwi", "perf", "pet", "ct")
_MASK_SUFFIXES = ("dseg", "mask", "seg", "lesion", "roi")  # of BIDS, and as they are met


class Found(NamedTuple):
    """One case before its files are read."""

    name: str
    images: tuple[Path, ...]
    mask: Path | None = None
    section: str | None = None
    subject: str | None = None  # where the layout says it


@dataclass
class Layout:
    """The files that were found, and their layout."""

    name: str
    root: Path
    cases: list[Found]
    channels: tuple[str, ...] = ("image",)
    labels: dict[int, str] = field(default_factory=dict)
    left_out: list[tuple[Path, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    label_scheme: str | None = None
    subjects: tuple[str, ...] = ()  # of participants.tsv


def find_layout(images: Path, masks: Path | None) -> Layout:
    """Find the scans and masks in a user's folders.

    Raises:
        StudyError: a folder is missing, or holds no scan.
        DatalistError: a JSON file cannot be read.
    """
    if images.is_file() and images.suffix == ".json":
        if masks is not None:
            raise StudyError(
                f"{images} already names its masks: leave out the folder {masks}, or give the folder of the scans."
            )
        return _datalist(images)
    masks = None if masks == images else masks
    for what, folder in (("scans", images), ("masks", masks)):
        if folder is not None and not folder.is_dir():
            kind = "is a file" if folder.exists() else "does not exist"
            raise StudyError(f"{folder} {kind}: give the folder of the {what}.")
    layout = _decathlon(images, masks) or _bids(images, masks) or _folders(images, masks)
    if not layout.cases:
        raise StudyError(_nothing(images, "scan"))
    layout.subjects = layout.subjects or _participants(images, layout.root)
    return layout


def _nothing(folder: Path, what: str) -> str:
    """Say that a folder holds no scan or no mask, and what it holds instead."""
    kinds = Counter(_NO_SCANS[p.suffix.lower()] for p in _walk(folder) if p.suffix.lower() in _NO_SCANS)
    wanted = "NIfTI (.nii.gz, .nii), NRRD (.nrrd), MetaImage (.mha, .mhd) and DICOM folders are read"
    if not kinds:
        return f"{folder} holds no {what}: {wanted}."
    kind, count = kinds.most_common(1)[0]
    advice = (
        "convert each stack of slices to one volume, with its voxel sizes" if kind == "pictures" else "convert them"
    )
    return f"{folder} holds no {what} but {count} {kind}: {wanted}; {advice}."


def _walk(folder: Path) -> list[Path]:
    """All files below a folder, sorted, without hidden ones. Links to folders are followed once.

    What an automatic run wrote into a folder below is left out: its label maps are neither scans nor masks to learn.
    """
    found = []
    seen = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        files = [] if real in seen else files  # by a link to a folder above
        seen.add(real)
        if parent != str(folder) and set(_RESULTS) <= set(files):
            folders[:], files = [], []
        found += [Path(parent, name) for name in files if not name.startswith(".")]
    return sorted(found)


def _volumes(folder: Path) -> list[Path]:
    """Files of volumes and folders of DICOM series below a folder, sorted."""
    files = _walk(folder)
    volumes = [p for p in files if p.name.lower().endswith(VOLUME_ENDINGS)]
    known = (*VOLUME_ENDINGS, *_NO_SCANS, ".json", ".tsv", ".csv", ".txt", ".md", ".raw")
    maybe = {p.parent for p in files if not p.name.lower().endswith(known)}
    return sorted([*volumes, *(p for p in maybe if holds_dicom(p))])


def _participants(*folders: Path) -> tuple[str, ...]:
    """Names of the people in `participants.tsv`, if it lies with the scans or beside their folder."""
    for folder in dict.fromkeys(p for one in folders for p in (one, one.parent)):
        if folder.is_dir():
            rows = read_table(folder, ("participants.tsv", "participants.csv"))
            if rows:
                return tuple(dict.fromkeys(row["participant_id"] for row in rows if row.get("participant_id")))
    return ()


# --- a datalist, the Decathlon's layout, nnU-Net's ----------------------------------------------------------------


def _datalist(path: Path) -> Layout:
    content = read_datalist(path)
    cases = []
    for section in (*SECTIONS, "unlabelled", "unlabeled"):
        for entry in content.get(section) or []:
            x = {"image": entry} if isinstance(entry, str) else entry
            if not isinstance(x, dict) or not x.get("image"):
                raise StudyError(f"{path} has an item in {section!r} without an 'image': correct it.")
            files = [x["image"]] if isinstance(x["image"], str) else x["image"]
            label = x.get("label")
            label = label[0] if isinstance(label, list) and len(label) == 1 else label
            if isinstance(label, list):
                raise StudyError(f"{path} gives {files[0]} {len(label)} masks: merge them into one file.")
            mask = _below(path.parent, label) if isinstance(label, str) else None
            subject = None if x.get("subject") is None else "/".join(str(x[k]) for k in ("domain", "subject") if k in x)
            images = tuple(_below(path.parent, file) for file in files)
            stated = section if section in SECTIONS else None
            # A lone list `training`, as the Decathlon's, is no split.
            cases.append(Found(without_ending(str(files[0])).removeprefix("./"), images, mask, stated, subject))
    name = "Decathlon (dataset.json)" if path.name == "dataset.json" else f"datalist {path.name}"
    return Layout(
        name,
        path.parent,
        cases,
        _channel_names(content, max((len(x.images) for x in cases), default=1)),
        _label_names(content),
        label_scheme=content.get("label_scheme"),
        notes=_ignore_note(content, path),
    )


def _below(folder: Path, path: str) -> Path:
    return Path(os.path.normpath(folder.absolute() / os.path.expanduser(path)))


def _channel_names(content: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """`channel_names` (nnU-Net 2) or `modality` (version 1 and the Decathlon) of a dataset.json."""
    named = content.get("channel_names") or content.get("modality")
    if isinstance(named, dict) and all(str(key).isdecimal() for key in named):
        return tuple(str(named[key]) for key in sorted(named, key=lambda key: int(key)))
    return _numbered_channels(count)


def _numbered_channels(count: int) -> tuple[str, ...]:
    return ("image",) if count == 1 else tuple(f"channel {i}" for i in range(count))


def _label_names(content: Mapping[str, Any]) -> dict[int, str]:
    """Names of the labels of a dataset.json, label -> name (version 1) or name -> label or labels (version 2)."""
    named = content.get("labels")
    names: dict[int, str] = {}
    for key, value in named.items() if isinstance(named, dict) else ():
        if str(key).isdecimal() and isinstance(value, str):
            names[int(key)] = value
        elif isinstance(value, int):
            names[value] = str(key)
    return {label: name for label, name in names.items() if label > 0}


def _ignore_note(content: Mapping[str, Any], path: Path) -> list[str]:
    """A note on labels that nnU-Net does not treat as classes."""
    labels = content.get("labels")
    named: dict[str, Any] = labels if isinstance(labels, dict) else {}
    notes = []
    if isinstance(named.get("ignore"), int):
        notes.append(
            f"{path} calls the label {named['ignore']} `ignore`, but it is learnt here as a separate class: "
            "remove it from the masks if you do not want that."
        )
    regions = [str(key) for key, value in named.items() if isinstance(value, list) and len(value) > 1]
    if regions:
        notes.append(f"The regions of {path} ({some(regions)}) are not learnt; the labels in them are.")
    return notes


def _decathlon(images: Path, masks: Path | None) -> Layout | None:
    """`imagesTr` with `labelsTr`, and `dataset.json`, in the folder itself or beside the given one."""
    root = images
    parts: tuple[str, ...] = ("Tr", "Ts")
    match = re.fullmatch(r"images(Tr|Ts)", images.name)
    if match:
        root, parts = images.parent, (match[1],)
    description: dict[str, Any] = {}
    json_file = root / "dataset.json"
    if json_file.is_file():
        description = read_dictionary(json_file)
        if masks is None and not match and names_its_files(root, description):
            return _datalist(json_file)
    if not (root / f"images{parts[0]}").is_dir():
        return None
    cases: list[Found] = []
    left_out: list[tuple[Path, str]] = []
    named = description.get("channel_names") or description.get("modality")
    names: list[str] = []
    for part in parts:
        scans_of = _by_name(_volumes(root / f"images{part}"), root / f"images{part}", left_out)
        folder = masks if masks is not None and (match or part == "Tr") else root / f"labels{part}"
        masks_of = _by_name(_volumes(folder), folder, left_out) if folder.is_dir() else {}
        groups = channel_cases(scans_of, masks_of, bool(named) or any(len(x.images) > 1 for x in cases))
        names += groups
        section = "test" if part == "Ts" else None
        cases += [Found(name, tuple(files), masks_of.get(name), section) for name, files in groups.items()]
        if masks_of and not masks_of.keys() & groups.keys():
            raise _strangers(masks_of, scans_of, folder, root / f"images{part}")
        left_out += _alone(masks_of, groups, root / f"images{part}")
    count = (
        len(named)
        if isinstance(named, dict)
        else Counter(len(x.images) for x in cases).most_common(1)[0][0]
        if cases
        else 1
    )
    kept = _with_channels(cases, count if any(len(x.images) > 1 for x in cases) else 1, left_out)
    return Layout(
        "nnU-Net (imagesTr, labelsTr)",
        root,
        kept,
        _channel_names(description, count),
        _label_names(description),
        left_out,
        _ignore_note(description, json_file),
    )


def _one_form(name: str) -> str:
    """A name with each letter as one character: macOS writes an umlaut as two, others as one."""
    return unicodedata.normalize("NFC", name)


def _by_name(files: Iterable[Path], root: Path, left_out: list[tuple[Path, str]]) -> dict[str, Path]:
    """Files by their path below a folder, without ending; names with two endings are left out."""
    found: dict[str, list[Path]] = {}
    for file in files:
        found.setdefault(_one_form((file.parent.relative_to(root) / stem(file)).as_posix()), []).append(file)
    for several in found.values():
        if len(several) > 1:
            left_out += [
                (file, f"has the name of {several[i - 1].name}: keep one of them") for i, file in enumerate(several)
            ]
    return {name: files[0] for name, files in found.items() if len(files) == 1}


def _strangers(masks: Iterable[str], scans: Iterable[str], folder: Path, images: Path) -> StudyError:
    """Say that no mask has the name of a scan."""
    masks, scans = list(masks), list(scans)
    return StudyError(
        f"None of the {len(masks)} masks in {folder} has the name of a scan in {images} (masks: {some(masks, 3)}; "
        f"scans: {some(scans, 3) or 'none'}): give both the same names."
    )


def _alone(masks: Mapping[str, Path], cases: Iterable[str], scans: Path) -> list[tuple[Path, str]]:
    known = set(cases)
    return [
        (file, f"is a mask without a scan of its name in {scans}") for name, file in masks.items() if name not in known
    ]


def _with_channels(cases: Iterable[Found], count: int, left_out: list[tuple[Path, str]]) -> list[Found]:
    """Keep cases with one file per channel."""
    kept = []
    for case in cases:
        if len(case.images) == count:
            kept.append(case)
        else:
            left_out.append((case.images[0], f"has {len(case.images)} channel files, but {count} are expected"))
    return kept


# --- BIDS ---------------------------------------------------------------------------------------------------------


def _bids(images: Path, masks: Path | None) -> Layout | None:
    """`sub-*/[ses-*/]anat/*_T1w.nii.gz`, and masks in `derivatives`, beside the scans or in a given folder."""
    if not any(
        (below / kind).is_dir()
        for person in images.glob("sub-*")
        for below in (person, *person.glob("ses-*"))
        for kind in _BIDS_FOLDERS
    ):
        return None
    files = [p for p in _volumes(images) if p.is_file() and p.relative_to(images).parts[0].startswith("sub-")]
    derived = masks or images / "derivatives"
    scans = [p for p in files if _suffix(p) not in (*_MASK_SUFFIXES, "probseg") and p.parent.name in _BIDS_FOLDERS]
    candidates = [p for p in (*files, *(_volumes(derived) if derived.is_dir() else [])) if _suffix(p) in _MASK_SUFFIXES]
    if masks is not None:
        candidates = _volumes(masks)
    left_out: list[tuple[Path, str]] = []
    by_subject: dict[str, list[Path]] = defaultdict(list)
    for p in candidates:
        by_subject[_bids_subject(p)].append(p)
    sessions: dict[str, dict[str, Path]] = defaultdict(dict)
    masks_of: dict[str, list[Path]] = defaultdict(list)
    for file in scans:
        session = re.sub(r"_[A-Za-z0-9]+$", "", (file.parent.parent.relative_to(images) / stem(file)).as_posix())
        sessions[session][_suffix(file)] = file
        for mask in by_subject[stem(file).split("_")[0]]:
            if belongs(file, _suffix(file), mask) and mask not in masks_of[session]:
                masks_of[session].append(mask)
    used = {mask for several in masks_of.values() for mask in several}
    if masks is not None and not used:
        raise _strangers([stem(p) for p in candidates], [stem(p) for p in scans], masks, images)
    left_out += [(p, "is a mask without a scan of its entities") for p in candidates if p not in used]
    layout = _with_contrasts(
        {name: (contrasts, masks_of.get(name, [])) for name, contrasts in sessions.items()}, left_out
    )
    layout.name, layout.root = "BIDS", images
    layout.cases = [x._replace(subject=re.search(r"sub-[^_/]+", x.name)[0]) for x in layout.cases]  # type: ignore[index]
    roots = [images] if masks is None else [images, masks]
    folders = {q for p in used for q in p.parents if any(q.is_relative_to(root) for root in roots)} | {images}
    for folder in sorted(folders):
        for row in read_table(folder, ("*dseg.tsv",)):
            if row.get("index", "").isdecimal() and row["index"] != "0" and row.get("name"):
                layout.labels[int(row["index"])] = row["name"]
    return layout


def _suffix(file: Path) -> str:
    return stem(file).rpartition("_")[2]


def _bids_subject(file: Path) -> str:
    return next((part for part in re.split(r"[_/]", file.as_posix())[::-1] if part.startswith("sub-")), "")


def _with_contrasts(
    groups: Mapping[str, tuple[Mapping[str, Path], Sequence[Path]]], left_out: list[tuple[Path, str]]
) -> Layout:
    """Cases with the contrasts that most groups have, each with its mask.

    Args:
        groups: name -> contrast -> scan, and its masks.
    """
    labelled = [contrasts for contrasts, masks in groups.values() if masks]
    counts = Counter(contrast for contrasts in labelled or [c for c, _ in groups.values()] for contrast in contrasts)
    most = len(labelled or groups)
    chosen = sorted(contrast for contrast, count in counts.items() if 2 * count > most) or [counts.most_common(1)[0][0]]
    cases = []
    for name, (contrasts, masks) in groups.items():
        if len(masks) > 1:
            left_out.append((next(iter(contrasts.values())), _several(masks)))
            continue
        lacking = [contrast for contrast in chosen if contrast not in contrasts]
        if lacking:
            left_out.append(
                (next(iter(contrasts.values())), f"has no {' and no '.join(lacking)} beside it, as most have")
            )
            continue
        left_out += [
            (p, f"is a {c or 'scan without a contrast in its name'}, which few cases have")
            for c, p in contrasts.items()
            if c not in chosen
        ]
        cases.append(Found(name, tuple(contrasts[c] for c in chosen), masks[0] if masks else None))
    channels = tuple(c or "image" for c in chosen)
    return Layout("", Path(), cases, channels, left_out=left_out)


def _several(masks: Sequence[Path]) -> str:
    names = " and ".join(p.name for p in masks[:2]) + (f" and {len(masks) - 2} more" if len(masks) > 2 else "")
    return f"has {len(masks)} masks ({names}): keep one, or merge them into one file if each is another structure"


# --- folders of any kind ------------------------------------------------------------------------------------------


class _Named(NamedTuple):
    file: Path
    key: str  # path below the folder, without ending
    bare: str  # the same without folders and endings that say scan or mask
    words: tuple[str, ...]  # of it, without those that say scan or mask
    contrast: str
    is_mask: bool  # by its name


def _folders(images: Path, masks: Path | None) -> Layout:
    """Scans and masks with equal names, or names that differ in the usual words, in one or two folders."""
    left_out: list[tuple[Path, str]] = []
    files = _volumes(images)
    if masks is None:
        named = [_named(p, images) for p in files]
        scan_list = [x for x in named if not x.is_mask]
        mask_list = [x for x in named if x.is_mask]
        if not scan_list:
            scan_list, mask_list = mask_list, []
    else:
        scan_list = [_named(p, images) for p in files if not _inside(p, masks, images)]
        mask_list = [_named(p, masks) for p in _volumes(masks) if not _inside(p, images, masks)]
        if not mask_list:
            raise StudyError(_nothing(masks, "mask"))
        # Brain masks and the like beside the scans are no scans.
        own = {x.words for x in scan_list if not x.is_mask}
        left_out += [
            (x.file, "is named like a mask but lies among the scans") for x in scan_list if x.is_mask and x.words in own
        ]
        scan_list = [x for x in scan_list if not (x.is_mask and x.words in own)]
    scan_list = _once(scan_list, left_out)
    mask_list = _once(mask_list, left_out)
    numbered = _numbered(scan_list, mask_list, left_out, images)
    layout = (
        numbered
        or _contrast_cases(scan_list, mask_list, left_out)
        or _single(scan_list, mask_list, left_out, images, masks)
    )
    layout.root = images
    where = (
        "two folders"
        if masks is not None or any(is_mask_folder(p) for x in mask_list for p in x.file.parents)
        else "one folder"
    )
    layout.name = f"{where} of {'DICOM series' if any(p.is_dir() for p in files) else 'files'}"
    if not layout.cases and left_out:
        file, reason = left_out[0]
        raise StudyError(f"No scan below {images} can be used: {file} {reason}.")
    return layout


def _inside(file: Path, folder: Path, other: Path) -> bool:
    """Whether a file lies in the inner one of two nested folders."""
    return folder != other and folder.is_relative_to(other) and file.is_relative_to(folder)


def _named(file: Path, root: Path) -> _Named:
    relative = Path(_one_form(file.relative_to(root).as_posix()))
    key = (relative.parent / (stem(relative) if file.is_file() else relative.name)).as_posix()
    words: list[str] = []
    contrast, is_mask = "", False
    folders = [part for part in relative.parent.parts if not _SCAN_FOLDER.fullmatch(part)]
    for number, part in enumerate([*folders, key.rpartition("/")[2]]):
        if number < len(folders) and MASK_FOLDER.fullmatch(part):
            is_mask = True
            continue
        own = []
        for word in re.split(r"[_\-. ]+", part.lower()):
            match = _WORD_AND_NUMBER.fullmatch(word)
            kind, rest = (match[1], match[2]) if match else (word, "")
            is_mask = is_mask or kind in _MASK_WORDS
            if kind in _MASK_WORDS | _SCAN_WORDS:
                own += [rest] if rest else []
            elif word in CONTRASTS:
                contrast = f"{contrast} {word}".strip()
            elif word:
                own.append(word)
        # Files often repeat the names of their folders.
        words = own if own[: len(words)] == words else words + own
    below = [part for part in folders if not MASK_FOLDER.fullmatch(part)]
    bare = "/".join([*below, _MASK_ENDING.sub("", key.rpartition("/")[2])])
    return _Named(file, key, bare, tuple(words), contrast, is_mask)


def _once(files: Sequence[_Named], left_out: list[tuple[Path, str]]) -> list[_Named]:
    """Files whose names differ in more than the ending."""
    groups: dict[str, list[_Named]] = {}
    for x in files:
        groups.setdefault(x.key, []).append(x)
    for several in groups.values():
        if len(several) > 1:
            left_out += [
                (x.file, f"has the name of {several[i - 1].file.name}: keep one of them") for i, x in enumerate(several)
            ]
    return [several[0] for several in groups.values() if len(several) == 1]


def _numbered(
    scans: Sequence[_Named], masks: Sequence[_Named], left_out: list[tuple[Path, str]], images: Path
) -> Layout | None:
    """nnU-Net's channels, `case_0000` and `case_0001`, if the names show that."""
    scans_of, masks_of = {x.bare: x.file for x in scans}, {x.bare: x.file for x in masks}
    if len(scans_of) < len(scans) or len(masks_of) < len(masks):
        return None
    groups = channel_cases(scans_of, masks_of, False)
    if all(name in scans_of for name in groups):
        return None
    cases = [Found(name, tuple(files), masks_of.get(name)) for name, files in groups.items()]
    used = {x.mask for x in cases}
    left_out += [(x.file, "is a mask without a scan of its name") for x in masks if x.file not in used]
    count = Counter(len(x.images) for x in cases).most_common(1)[0][0]
    return Layout("", images, _with_channels(cases, count, left_out), _numbered_channels(count), left_out=left_out)


def _contrast_cases(
    scans: Sequence[_Named], masks: Sequence[_Named], left_out: list[tuple[Path, str]]
) -> Layout | None:
    """Combine scans whose names differ only in the contrast (`a_t1`, `a_t2`, or folders `t1` and `t2`) into one case.

    It does so if most cases have several contrasts and at most one mask; otherwise it returns `None`.
    """
    groups: dict[tuple[str, ...], list[_Named]] = defaultdict(list)
    masks_of: dict[tuple[str, ...], list[Path]] = defaultdict(list)
    for x in scans:
        groups[x.words].append(x)
    for x in masks:
        masks_of[x.words].append(x.file)
    some_masked = [words for words in groups if words in masks_of]
    judged = some_masked or list(groups)
    if any(len({x.contrast for x in several}) < len(several) for several in groups.values()):
        return None
    if 2 * sum(len(groups[words]) > 1 for words in judged) <= len(judged):
        return None
    # A mask for each contrast: these are scans of their own.
    if 2 * sum(len(masks_of[words]) > 1 for words in some_masked) > len(some_masked):
        return None
    left_out += [
        (p, "is a mask without a scan of its name")
        for words, files in masks_of.items()
        if words not in groups
        for p in files
    ]
    return _with_contrasts(
        {
            "_".join(words) or several[0].key: ({x.contrast: x.file for x in several}, masks_of.get(words, []))
            for words, several in groups.items()
        },
        left_out,
    )


def _single(
    scans: Sequence[_Named],
    masks: Sequence[_Named],
    left_out: list[tuple[Path, str]],
    images: Path,
    folder: Path | None,
) -> Layout:
    """One case per scan, with the mask of the same name, else of a name that differs in the usual words.

    Masks that have more than that in common with no scan are matched by the file's name alone, or by the scan's folder,
    if no folder of the masks has the name of one of the scans. A note lists such pairs.
    """
    folders = {_folder_of(x) for x in scans}
    apart = not folders & {_folder_of(x) for x in masks}
    of_paths: list[Callable[[_Named], Hashable]] = [
        lambda x: x.key,
        lambda x: (x.words, x.contrast),
        lambda x: x.words,
    ]
    of_names: list[Callable[[_Named], Hashable]] = [
        lambda x: x.key.rpartition("/")[2].lower(),
        lambda x: _named(x.file, x.file.parent).words,
        lambda x: _MASK_ENDING.sub("", x.key.partition("/")[0]).lower(),  # one scan in a folder of its own
    ]
    masks_of: dict[Path, list[Path]] = defaultdict(list)
    rest = list(masks)
    guessed: list[Path] = []
    for key in (*of_paths, *of_names):
        by_name = key in of_names
        found: dict[Hashable, list[_Named]] = defaultdict(list)
        for x in scans:
            found[key(x)].append(x)
        unmatched = []
        for x in rest:
            alike = found.get(key(x), []) if key(x) not in ((), ((), "")) else []
            # A folder with scans says where its masks belong; a name that is found in another one is another person's.
            elsewhere = apart if by_name else _folder_of(x) not in folders
            alike = [scan for scan in alike if elsewhere or _folder_of(scan) == _folder_of(x)]
            if len(alike) == 1:
                masks_of[alike[0].file].append(x.file)
                if by_name or (x.contrast and x.contrast != alike[0].contrast):
                    guessed.append(x.file)
            else:
                unmatched.append(x)
        rest = unmatched
    unmatched = _longer_names(scans, rest, masks_of)
    guessed += [x.file for x in rest if x not in unmatched]
    rest = unmatched
    if masks and not masks_of:
        raise _strangers([x.key for x in masks], [x.key for x in scans], folder or images, images)
    left_out += [(x.file, f"is a mask without a scan of its name in {images}") for x in rest]
    cases = []
    plain = len({x.bare for x in scans}) == len(scans)
    for x in scans:
        several = masks_of.get(x.file, [])
        if len(several) > 1:
            left_out.append((x.file, _several(several)))
        else:
            cases.append(Found(x.bare if plain else x.key, (x.file,), several[0] if several else None))
    notes = _guessed_note([x for x in cases if x.mask in set(guessed)], images, folder or images)
    return Layout("", images, cases, left_out=left_out, notes=notes)


def _guessed_note(cases: Sequence[Found], images: Path, masks: Path) -> list[str]:
    if not cases:
        return []
    pairs = [f"{x.images[0].relative_to(images)} with {x.mask.relative_to(masks)}" for x in cases if x.mask]
    are = "1 pair is" if len(pairs) == 1 else f"{len(pairs)} pairs are"
    return [f"{are} a guess, since the names differ: {some(pairs, MOST_GUESSED)}."]


def _folder_of(x: _Named) -> str:
    """The folder below the scans' or the masks', without folders whose names say which of both they hold."""
    return x.bare.rpartition("/")[0].lower()


def _longer_names(scans: Sequence[_Named], masks: Sequence[_Named], masks_of: dict[Path, list[Path]]) -> list[_Named]:
    """Match masks whose names extend the scan's (`a_liver`), or the other way round; returns the rest.

    The extension has no digit, since it could be the number of another scan, and no word for a visit (`post`).
    """
    counts = Counter(x.bare for x in scans)
    by_name = {x.bare: x for x in scans if counts[x.bare] == 1}
    free = {x.bare: x for x in masks}
    rest = []
    for x in masks:
        scan = by_name.get(_begin(x.bare, by_name) or "")
        if scan is None:
            rest.append(x)
        else:
            masks_of[scan.file].append(x.file)
    begins: dict[str, list[_Named]] = defaultdict(list)
    for x in scans:
        name = _begin(x.bare, free)
        if name is not None and x.file not in masks_of:
            begins[name].append(x)
    for x in list(rest):
        if len(begins[x.bare]) == 1:  # of several it cannot be told which
            masks_of[begins[x.bare][0].file].append(x.file)
            rest.remove(x)
    return rest


def _begin(name: str, names: Collection[str]) -> str | None:
    """The longest of the names that this name begins with, without a digit or a visit after it."""
    ends = [match.start() for match in re.finditer(r"[_\-. ]", name)]
    found = [
        name[:end]
        for end in ends
        if name[:end] in names and not re.search(r"\d", name[end:]) and not has_visit(name[end:])
    ]
    return found[-1] if found else None
