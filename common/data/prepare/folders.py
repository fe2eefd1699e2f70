from __future__ import annotations

from pathlib import Path
from typing import Any

from ..datalist import DatalistError
from .files import add_once, item, scans, some, stem


def collect_folders(
    source: Path, images: str = "images", labels: str | None = "labels", label_ending: str = ""
) -> list[dict[str, Any]]:
    """Two folders of NIfTI files, scans and masks with the same names: `images/a.nii.gz` and `labels/a.nii.gz`, or two
    others given with `--images` and `--labels`.

    Sub-folders are part of the names. Scans without a mask are for pre-training. Each scan is a separate subject,
    unless `--subject` defines subjects; if the names tell of several scans of a subject, `--subject` is asked for.

    Args:
        source: folder that holds both.
        images: folder of the scans.
        labels: folder of the masks; `None` if there are none.
        label_ending: ending of the masks' names after the scan's name, such as `_seg`.

    Raises:
        DatalistError: a folder is missing, two scans or two masks have one name, or no mask has the name of a scan.
    """
    found: dict[str, dict[str, Path]] = {}
    for what, name in (("images", images), ("labels", labels)):
        found[what] = {}
        if name is None:
            continue
        folder = source / name
        if not folder.is_dir() and name == "images":
            return []
        if not folder.is_dir():
            without = ", or --labels None if there are no masks" if what == "labels" else ""
            raise DatalistError(f"No folder at {folder}: name it with --{what} (relative to --source){without}.")
        for file in scans(folder, "**/*"):
            key = (file.parent.relative_to(folder) / stem(file)).as_posix()
            if what == "labels" and label_ending:
                if not key.endswith(label_ending):
                    continue
                key = key.removesuffix(label_ending)
            add_once(found[what], key, file, "scans" if what == "images" else "masks")
    scans_of, masks_of = found["images"], found["labels"]
    if labels is not None and not masks_of.keys() & scans_of.keys() and scans_of:
        raise DatalistError(
            f"None of the {len(masks_of)} masks in {source / labels} has the name of a scan in {source / images} "
            f"({some(sorted(masks_of)) or 'no NIfTI file'}; scans: {some(sorted(scans_of))}): give both the "
            "same names, or name the extra ending of the masks with --label_ending."
        )
    return [item(file, label=masks_of.get(name), subject=name) for name, file in sorted(scans_of.items())]
