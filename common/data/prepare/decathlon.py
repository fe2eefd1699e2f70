from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

from ...files import NIFTI_ENDINGS
from ..datalist import SECTIONS, DatalistError, load_datalist, read_dictionary
from .files import by_stem, item, scans, some, stem

_CHANNEL = re.compile(r"(.+)_(\d{4})")


TRANSSEG_CASES = (484, 20, 131, 260, 32, 63, 281, 303, 41, 126)
"""Labelled cases of the Decathlon's ten sets."""


def collect_decathlon(source: Path, split: str | None = None) -> list[dict[str, Any]]:
    """A folder in the layout of the Medical Segmentation Decathlon, or of nnU-Net (versions 1 and 2).

    It takes the files that `dataset.json` names. Without that file, or with nnU-Net's, which names no files or names
    them without channel, it takes `imagesTr`, `labelsTr`, `imagesTs` and `labelsTs`. Images with the endings `_0000`,
    `_0001`, ... are channels of one item. Scans of `imagesTs`, and those under `test` in `dataset.json`, are the
    published test part; in the Decathlon they have no labels.

    Args:
        source: the folder.
        split: `transseg` for the exact lists of Zhang et al., TransSeg (80, 15 and 5 %). It needs a whole set of the
            Decathlon in a folder with its published name (`Task09_Spleen`).

    Raises:
        DatalistError: two files have one name, no mask has a scan of its name, a case lacks a channel, the files are
            not NIfTI files, or the set has no such split.
    """
    items = _collect(source)
    if split is None:
        return items
    if split != "transseg":
        raise DatalistError(f"decathlon has the split 'transseg', not {split!r}.")
    lists = transseg_lists(source)
    for x in items:
        if "label" in x and not x.get("published_test"):
            x["published_list"] = lists[stem(Path(_first(x["image"])))]
    return items


def transseg_lists(source: Path) -> dict[str, str]:
    """The list of each labelled case of a set of the Decathlon in TransSeg's published code.

    ``src/data/msd/split_data_to_slices_nii.py`` seeds Python's generator once with 1234 and shuffles the `training` of
    each `dataset.json`, set by set in the order of names. The first 80 % train, and those up to 95 % validate. So the
    lists of a set depend on the number of cases in earlier sets.

    Raises:
        DatalistError: the folder is not named after one of the ten sets, or `dataset.json` lacks some of its cases.
    """
    match = re.match(r"Task(\d\d)_", source.name)
    number = int(match[1]) if match else 0
    if not 1 <= number <= len(TRANSSEG_CASES):
        raise DatalistError(
            f"{source} is not named after a set of the Decathlon, such as Task09_Spleen: rename the folder."
        )
    path = source / "dataset.json"
    names = (
        [stem(Path(_first(x["image"]))) for x in read_dictionary(path).get("training", [])] if path.is_file() else []
    )
    if len(names) != TRANSSEG_CASES[number - 1]:
        raise DatalistError(
            f"{path} has {len(names)} labelled cases, but the published set has "
            f"{TRANSSEG_CASES[number - 1]}: give the whole set as downloaded, or leave out --split."
        )
    draw = random.Random(1234)
    for cases in TRANSSEG_CASES[: number - 1]:
        draw.shuffle(list(range(cases)))
    draw.shuffle(names)
    ends = int(0.8 * len(names)), int(0.95 * len(names))
    return {
        name: "training" if place < ends[0] else "validation" if place < ends[1] else "test"
        for place, name in enumerate(names)
    }


def _collect(source: Path) -> list[dict[str, Any]]:
    description: dict[str, Any] = {}
    if (source / "dataset.json").is_file():
        description = read_dictionary(source / "dataset.json")
        ending = description.get("file_ending", NIFTI_ENDINGS[0])
        if str(ending).lower() not in NIFTI_ENDINGS:
            raise DatalistError(f"{source / 'dataset.json'} has files that end in {ending!r}: convert them to .nii.gz.")
        if names_its_files(source, description):
            lists = load_datalist(source / "dataset.json", check="none", label_key=None)
            labelled = load_datalist(source / "dataset.json", check="none")
            label_of = {_first(x["image"]): x["label"] for items in labelled.values() for x in items if "label" in x}
            return [
                item(
                    _paths(x["image"]),
                    label=_paths(label_of.get(_first(x["image"]))),
                    subject=_subject(x),
                    published_test=section == "test" or None,
                )
                for section, items in lists.items()
                for x in items
            ]
    channels = description.get("channel_names") or (description.get("modality") if description else None)
    items = []
    for part in ("Tr", "Ts"):
        images = by_stem(scans(source / f"images{part}"), "images")
        labels = by_stem(scans(source / f"labels{part}"), "labels")
        cases = channel_cases(images, labels, bool(channels))
        unknown = [name for name in labels if name not in cases]
        if labels and len(unknown) == len(labels):
            raise DatalistError(
                f"None of the {len(labels)} masks in {source / f'labels{part}'} has a scan of its name in "
                f"images{part} ({some(unknown)}): give both the same names."
            )
        for name, files in cases.items():
            _check_channels(source / f"images{part}" / name, files, channels)
            image = files[0] if len(files) == 1 else files
            items.append(item(image, label=labels.get(name), subject=name, published_test=part == "Ts" or None))
    return items


def names_its_files(source: Path, description: dict[str, Any]) -> bool:
    """Whether a `dataset.json` names its files; nnU-Net's leaves out the channel or names none."""
    entries = [x for name in SECTIONS for x in description.get(name) or []]
    if not entries and (source / "imagesTr").is_dir():
        return False
    images = [x.get("image") if isinstance(x, dict) else x for x in entries]
    files = [source / image for image in images if isinstance(image, str)]
    bare = [file for file in files if not file.exists() and scans(file.parent, f"{stem(file)}_0000")]
    return not bare


def channel_cases(images: dict[str, Path], labels: dict[str, Path], has_channels: bool) -> dict[str, list[Path]]:
    """Files of each case: its channels, if names end in channel numbers, else the file with its name."""
    matches = {name: match for name in images if (match := _CHANNEL.fullmatch(name)) and name not in labels}
    if not has_channels and not any(match[1] in labels for match in matches.values()):
        first = {match[1] for match in matches.values() if match[2] == "0000"}
        # Without masks to tell by: numbers that begin at 0000 for every name are channels, else they count scans.
        if labels or len(first) < 2 or any(match[1] not in first for match in matches.values()):
            matches = {}
    cases: dict[str, list[Path]] = {}
    for name, file in images.items():
        cases.setdefault(matches[name][1] if name in matches else name, []).append(file)
    return cases


def _check_channels(case: Path, files: list[Path], channels: Any) -> None:
    """Check that every case has the channels that `dataset.json` names."""
    endings = [match[2] for file in files if (match := _CHANNEL.fullmatch(stem(file)))]
    missing = [f"{i:04d}" for i in range(len(channels or [])) if f"{i:04d}" not in endings]
    if len(endings) == len(files) and case.name != stem(files[0]) and missing:
        raise DatalistError(
            f"{case} lacks the channel {', '.join(missing)} of dataset.json: add it or remove the case."
        )
    if len(files) > len(channels or files):
        raise DatalistError(
            f"{case} has {len(files)} channels, but dataset.json names {len(channels)}: correct one of them."
        )


def _first(image: Any) -> Any:
    return image[0] if isinstance(image, list) else image


def _paths(value: Any) -> Any:
    return None if value is None else Path(value) if isinstance(value, str) else [Path(v) for v in value]


def _subject(x: dict[str, Any]) -> str:
    return str(x.get("subject") or stem(Path(_first(x["image"]))))
