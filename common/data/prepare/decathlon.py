from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..datalist import load_datalist
from .files import by_stem, item, scans, stem


def collect_decathlon(source: Path) -> list[dict[str, Any]]:
    """A folder in the layout of the Medical Segmentation Decathlon.

    Takes what its `dataset.json` names, or `imagesTr`, `labelsTr` and `imagesTs` where there is none. Images with
    the endings `_0000`, `_0001`, ... are modalities of one item. The Decathlon's test scans have no labels: they are
    for pre-training.
    """
    if (source / "dataset.json").is_file():
        lists = load_datalist(source / "dataset.json", check="none", label_key=None)
        labelled = load_datalist(source / "dataset.json", check="none")
        label_of = {_first(x["image"]): x["label"] for items in labelled.values() for x in items if "label" in x}
        return [
            item(_paths(x["image"]), label=_paths(label_of.get(_first(x["image"]))), subject=_subject(x))
            for items in lists.values()
            for x in items
        ]
    labels = by_stem(scans(source / "labelsTr"), "labels")
    items = []
    for folder in ("imagesTr", "imagesTs"):
        modalities: dict[str, list[Path]] = {}
        for image in scans(source / folder):
            name = stem(image)
            case = re.sub(r"_\d{4}$", "", name)
            modalities.setdefault(name if name in labels or case not in labels else case, []).append(image)
        for name, images in modalities.items():
            label = labels.get(name) if folder == "imagesTr" else None
            items.append(item(images[0] if len(images) == 1 else images, label=label, subject=name))
    return items


def _first(image: Any) -> str:
    return image if isinstance(image, str) else image[0]


def _paths(value: Any) -> Any:
    return None if value is None else Path(value) if isinstance(value, str) else [Path(v) for v in value]


def _subject(x: dict[str, Any]) -> str:
    return str(x.get("subject") or stem(Path(_first(x["image"]))))
