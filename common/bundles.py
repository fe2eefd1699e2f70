"""The bundles in the package: ``python -m common.bundles list | copy NAME FOLDER``."""

from __future__ import annotations

import shutil
from pathlib import Path

from .command_line import run_command
from .json_files import read_json

__all__ = ["BundleError", "bundle_folder", "bundle_names", "copy", "find_bundle"]

PARTS = ("LICENSE", "configs", "docs")
"""Parts of a bundle. Runs wrote everything else in its folder, perhaps from patients' images."""


class BundleError(ValueError):
    """A bundle does not exist or cannot be copied; the message is one sentence."""


def bundles_root() -> Path:
    """The folder of all bundles: beside the package in the repository, inside it after installation."""
    package = Path(__file__).resolve().parent
    beside = package.parent / "bundles"
    return beside if beside.is_dir() and (package.parent / "setup.cfg").is_file() else package / "bundle_files"


def bundle_names() -> list[str]:
    """Names of the bundles, in order."""
    return sorted(path.parent.name for path in bundles_root().glob("*/configs"))


def bundle_folder(name: str) -> Path:
    """The folder of a bundle.

    Raises:
        BundleError: there is no bundle of that name.
    """
    folder = bundles_root() / name
    if not (folder / "configs").is_dir():
        known = ", ".join(bundle_names()) or f"none, in {bundles_root()}"
        raise BundleError(f"There is no bundle {name!r}; the bundles are {known}.")
    return folder


def find_bundle(given: str | Path) -> Path:
    """The given folder or, if it does not exist, the folder of the bundle with this name; absolute."""
    folder = Path(given).absolute()
    named = not folder.exists() and str(given) in bundle_names()
    return (bundle_folder(str(given)) if named else folder).resolve()


def list_bundles() -> None:
    """List the bundles: name, description and folder."""
    for name in bundle_names():
        metadata = read_json(bundle_folder(name) / "configs" / "metadata.json")
        print(f"{name}: {metadata['description']}\n    {bundle_folder(name)}")


def copy(name: str, folder: str) -> None:
    """Copy a bundle into a folder, to run it there and to change its configs.

    Args:
        name: name of the bundle.
        folder: the copy becomes a folder of that name in it.
    """
    source, target = bundle_folder(name), Path(folder) / name
    if target.exists():
        raise BundleError(f"{target} exists: choose another folder, or remove it.")
    for part in (*sorted(source.glob("*.json")), *(source / part for part in PARTS)):
        place = target / part.name
        place.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if part.is_dir() else shutil.copyfile)(part, place)
    print(f"{name} is in {target}: cd {target}, and python -m monai.bundle run as its docs/README.md says.")


if __name__ == "__main__":
    run_command({"list": list_bundles, "copy": copy}, "python -m common.bundles")
