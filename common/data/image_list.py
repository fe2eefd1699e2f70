from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..dicom import dicom_files, holds_dicom
from ..files import VOLUME_ENDINGS, without_ending
from .datalist import load_datalist

__all__ = ["list_images"]

logger = logging.getLogger(__name__)

OUTPUT = "seg"
"""Ending that the bundles add to an image's name for its label map."""


def list_images(
    path: str | os.PathLike | Sequence[str | os.PathLike],
    base_dir: str | os.PathLike | None = None,
    section: str = "test",
    option: str | None = None,
) -> list[dict[str, Any]]:
    """Items ``{"image": file}`` to run inference on; the folder of a DICOM series counts as a file.

    Args:
        path: an image file, a folder of images, or a datalist (``.json``). Images of a folder are the image files in
            it, each sub-folder that holds DICOM files, and the folder itself if it does. It skips deeper folders, names
            that begin with a dot, and label maps that inference wrote beside an image or a series (``scan_seg`` of
            ``scan``); the last are logged. Several datalists are merged, as in training.
        base_dir: folder that a datalist's paths are relative to, its own folder by default.
        section: list of the datalist.
        option: of the command that took the path, for messages; by default the ids of a bundle.

    Raises:
        FileNotFoundError, ValueError: the path does not exist, the folder itself holds no image, or the list of the
            datalist is empty.
    """
    paths = [Path(path)] if isinstance(path, str | os.PathLike) else [Path(one) for one in path]
    if len(paths) > 1 or paths[0].suffix == ".json":
        items = load_datalist(paths, base_dir, label_key=None)
        if not items.get(section):
            names = ", ".join(map(str, paths))
            raise ValueError(f"the list '{section}' of {names} is empty; name another with data#section.")
        return [{"image": item["image"]} for item in items[section]]
    path = paths[0]
    if path.is_dir():
        images = _without_outputs(sorted(file for file in path.iterdir() if _is_image(file)), path)
        outputs = {f"{image.name}_{OUTPUT}.dcm" for image in images}
        images += [path] if any(file.name not in outputs for file in dicom_files(path)) else []
        if not images:
            what = f"no image ({', '.join(VOLUME_ENDINGS)}, or a folder of DICOM files) in {path}"
            deeper = next((file for file in path.rglob("*") if _is_image(file)), None)
            if deeper is not None:
                raise ValueError(
                    f"{what} itself, and folders in it are not searched (there is {deeper.relative_to(path)}): set "
                    f"{option or 'dataset_dir'} to the folder of the images, or write a datalist with a list "
                    f"'{section}' of them and give it with {option or '--datalist'} FILE.json."
                )
            raise ValueError(f"{what}; set {option or 'dataset_dir'} to a folder of images.")
        return [{"image": str(file)} for file in images]
    if path.is_file():
        return [{"image": str(path)}]
    given = option or "dataset_dir, or datalist,"
    raise FileNotFoundError(f"no such file or folder: {path}; set {given} to the images.")


def _without_outputs(images: list[Path], folder: Path) -> list[Path]:
    """The images without label maps of them, which lie there if ``output_dir`` is the images' folder."""
    # Folders of DICOM series have whole names, as in `KeepFolderTree`; the folder itself may hold one.
    stems = {file.name if file.is_dir() else without_ending(file.name) for file in images}
    stems |= {folder.resolve().name} if holds_dicom(folder) else set()
    outputs = [file for file in images if not file.is_dir() and _stem_of_output(file) in stems]
    if outputs:
        logger.info(
            "%d files of %s are label maps of images beside them and are skipped (%s).",
            len(outputs),
            outputs[0].parent,
            outputs[0].name,
        )
    return [file for file in images if file not in outputs]


def _stem_of_output(path: Path) -> str | None:
    stem = without_ending(path.name)
    return stem.removesuffix(f"_{OUTPUT}") if stem.endswith(f"_{OUTPUT}") else None


def _is_image(path: Path) -> bool:
    if path.name.startswith("."):
        return False  # hidden, such as the companions (`._scan.nii.gz`) that macOS writes on other disks
    if path.is_dir():
        return holds_dicom(path)
    return path.name.lower().endswith(VOLUME_ENDINGS)
