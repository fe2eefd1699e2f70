from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..dicom import holds_dicom
from .datalist import load_datalist

__all__ = ["list_images"]

SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd")


def list_images(
    path: str | os.PathLike, base_dir: str | os.PathLike | None = None, section: str = "test"
) -> list[dict[str, Any]]:
    """Items ``{"image": file}`` to run inference on; in place of a file stands the folder of a DICOM series.

    Args:
        path: an image file, a folder of images, or a datalist (``.json``). Images of a folder are the image files in
            it, each folder in it that holds DICOM files, and the folder itself if it does; nothing deeper, and
            no name that begins with a dot.
        base_dir: folder that a datalist's paths are relative to, its own folder by default.
        section: list of the datalist.

    Raises:
        FileNotFoundError, ValueError: nothing there, no image in the folder itself, or an empty list in the
            datalist.
    """
    path = Path(path)
    if path.suffix == ".json":
        items = load_datalist(path, base_dir, label_key=None)
        if not items.get(section):
            raise ValueError(f"the list '{section}' of {path} is empty; name another with data#section.")
        return [{"image": item["image"]} for item in items[section]]
    if path.is_dir():
        images = sorted(file for file in path.iterdir() if _is_image(file))
        images += [path] if holds_dicom(path) else []
        if not images:
            what = f"no image ({', '.join(SUFFIXES)}, or a folder of DICOM files) in {path}"
            deeper = next((file for file in path.rglob("*") if _is_image(file)), None)
            if deeper is not None:
                raise ValueError(
                    f"{what} itself, and folders in it are not searched (there is {deeper.relative_to(path)}): set "
                    f"dataset_dir to the folder of the images, or write a datalist with a list '{section}' of them and "
                    "give it with --datalist FILE.json."
                )
            raise ValueError(f"{what}; set dataset_dir to a folder of images.")
        return [{"image": str(file)} for file in images]
    if path.is_file():
        return [{"image": str(path)}]
    raise FileNotFoundError(f"no such file or folder: {path}; set dataset_dir, or datalist, to the images.")


def _is_image(path: Path) -> bool:
    if path.name.startswith("."):
        return False  # hidden, such as the companions (`._scan.nii.gz`) that macOS writes on other disks
    if path.is_dir():
        return holds_dicom(path)
    return path.name.lower().endswith(SUFFIXES)
