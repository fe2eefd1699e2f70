from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..datalist import DatalistError
from .files import is_below, item, scans, stem

_NAME = re.compile(r"(?:img|label)(\d{4})(?:_0000)?")

# lists/lists_Synapse/test_vol.txt of github.com/Beckschen/TransUNet; the other 18 of the 30 labelled scans train.
SYNAPSE_TEST = (
    "0001", "0002", "0003", "0004", "0008", "0022", "0025", "0029", "0032", "0035", "0036", "0038",
)  # fmt: skip
_CHALLENGE_TEST = {f"{number:04d}" for number in range(61, 81)}  # without labels


def collect_synapse(source: Path) -> list[dict[str, Any]]:
    """Multi-Atlas Labeling Beyond the Cranial Vault, abdomen (BTCV, www.synapse.org, syn3193805): CT, 13 organs.

    Reads `RawData/Training/img/img0001.nii.gz` with `RawData/Training/label/label0001.nii.gz` and, if present,
    `RawData/Testing/img/img0061.nii.gz` of the published test part, which has no labels. These may lie anywhere below
    the folder, as may `img` and `label` alone, and `imagesTr` with `labelsTr` (names `img0001` or `label0001`, with or
    without `_0000`). Scans of `imagesTs` that are also in another folder are taken from there. The subject is the
    number of the set, `0001`.

    Raises:
        DatalistError: two images or two labels have one number.
    """
    images: dict[str, Path] = {}
    labels: dict[str, Path] = {}
    for file in sorted(scans(source, "**/*"), key=_in_test_folder):
        match = _NAME.fullmatch(stem(file))
        if match is None:
            continue
        is_label = file.name.startswith("label") or file.parent.name.lower().startswith("label")
        found = labels if is_label else images
        first = found.setdefault(match[1], file)
        if first != file and not _in_test_folder(file):
            what = "labels" if is_label else "images"
            raise DatalistError(f"Two {what} have the number {match[1]}: {first} and {file}; keep one of them.")
    items = []
    for n, image in sorted(images.items()):
        judged = n not in labels and (n in _CHALLENGE_TEST or is_below(image, source, "testing|imagesTs"))
        items.append(item(image, label=labels.get(n), subject=n, published_test=judged or None))
    return items


def _in_test_folder(file: Path) -> bool:
    return file.parent.name.lower() in ("imagests", "labelsts")
