"""Report what is installed, which ``common`` is imported, and what would prevent a run.

``python -m common.doctor`` (or ``monai-transfer-doctor``, which a stray ``./common`` cannot shadow) prints a table,
then one sentence for each problem, and exits with status 1 if there is any.
"""

from __future__ import annotations

import configparser
import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import TYPE_CHECKING

from . import __version__
from .files import cache_folder

if TYPE_CHECKING:
    from packaging.requirements import Requirement

__all__ = ["cache_problem", "check_run", "import_problems", "label_warning", "requirements", "version_problems"]

DISTRIBUTION = "monai-transfer-bundles"
PACKAGE_FOLDER = Path(__file__).resolve().parent
EXTRAS = {
    "label": "serves the bundles with MONAI Label",
    "dicom": "writes label maps as DICOM SEG",
    "onnx": "writes and runs ONNX files",
    "tracking": "logs runs to MLflow",
    "cluster": "does the runs of a comparison on a SLURM cluster",
    "dev": "tests and checks of the collection itself",
}

LABEL_SAFE = "0.8.8"
"""First MONAI Label without a known way for strangers to run code in its server; see `label_warning`."""


def requirements(package_folder: Path = PACKAGE_FOLDER) -> list[Requirement]:
    """Requirements of this collection; those of extras have the marker ``extra == "..."``.

    ``setup.cfg`` states them once. They are read from ``requirements.txt`` inside the package (a packed bundle has
    one), from the ``setup.cfg`` beside the package (a checkout), or from the metadata of the installed distribution.

    Raises:
        RuntimeError: none of the three exists.
    """
    from packaging.requirements import Requirement

    packed = package_folder / "requirements.txt"
    if packed.is_file():
        return [Requirement(line) for line in _requirement_lines(packed.read_text(encoding="utf-8"))]
    setup = configparser.ConfigParser()
    setup.read(package_folder.parent / "setup.cfg", encoding="utf-8")
    if setup.get("metadata", "name", fallback=None) == DISTRIBUTION:
        lines = _requirement_lines(setup.get("options", "install_requires"))
        for extra, text in setup.items("options.extras_require"):
            lines += [f'{line}; extra == "{extra}"' for line in _requirement_lines(text)]
        return [Requirement(line) for line in lines]
    try:
        return [Requirement(line) for line in importlib.metadata.requires(DISTRIBUTION) or []]
    except importlib.metadata.PackageNotFoundError as error:
        raise RuntimeError(
            f"the requirements of {package_folder} are unknown: neither requirements.txt in it nor setup.cfg beside it "
            f"nor an installed {DISTRIBUTION} was found; install it with `pip install .` in the collection's folder."
        ) from error


def version_problems(
    needed: Iterable[Requirement], installed: Callable[[str], str] = importlib.metadata.version
) -> list[str]:
    """One sentence for each requirement that is missing or outside its range.

    Args:
        needed: requirements to compare with the installed versions; those of extras are left out.
        installed: gives the version of a distribution, raises ``PackageNotFoundError`` where there is none.
    """
    problems = []
    for requirement in needed:
        if _extra(requirement):
            continue
        found = _version(requirement.name, installed)
        if found is None:
            problems.append(f"{requirement.name} is not installed; run `pip install '{requirement}'`.")
        elif not requirement.specifier.contains(found, prereleases=True):
            problems.append(
                f"{requirement.name} {found} is installed, but this collection needs {requirement}; run `pip "
                f"install '{requirement}'`."
            )
    return problems


def import_problems(
    package_folder: Path = PACKAGE_FOLDER, folder: str | None = None, path: Sequence[str] | None = None
) -> list[str]:
    """One sentence for each way in which ``import common`` finds, or may find, another package than this one.

    It checks what ``python -m`` would import in ``folder`` and elsewhere, and looks for PyPI's unrelated distribution
    ``common``, whose files overwrite ours if both are installed in one environment.

    Args:
        package_folder: this package.
        folder: the working folder; the current one by default.
        path: the import path; ``sys.path`` by default.
    """
    if __package__ != "common" and package_folder == PACKAGE_FOLDER:
        return []  # packed in a bundle, under a name that nothing shadows
    folder = os.path.realpath(folder or os.getcwd())
    elsewhere = [
        entry for entry in (sys.path if path is None else path) if os.path.realpath(entry or os.getcwd()) != folder
    ]
    problems = []
    stranger = _foreign_distribution(package_folder)
    if stranger is not None:
        problems.append(
            f"PyPI's unrelated package `common` {stranger} is installed over this collection's {package_folder}; "
            f"run `pip uninstall common` and install {DISTRIBUTION} again."
        )
    if not _safe_path():
        here = _location(_find(["", *elsewhere], folder))
        if here is not None and here.parent == Path(folder) and here != package_folder:
            problems.append(
                f"{here} shadows this collection's package `common` for commands run in {folder}; "
                "rename it, work from another folder, or set PYTHONSAFEPATH=1 (Python 3.11 or newer)."
            )
    there = _location(_find(elsewhere, folder))
    if there is not None and there != package_folder:
        problems.append(
            f"outside of {folder}, `import common` finds {there}, not this collection's {package_folder}; "
            "remove it (if it is PyPI's unrelated package: `pip uninstall common`) or put this one first in PYTHONPATH."
        )
    return problems


def check_run() -> list[str]:
    """One sentence for each problem that would stop any bundle: PyPI's ``common`` over ours, MONAI, torch.

    It is cheap enough for the first step of every run.
    """
    stranger = _foreign_distribution(PACKAGE_FOLDER)
    problems = [] if stranger is None else import_problems()[:1]
    return problems + version_problems(r for r in requirements() if r.name in ("monai", "torch"))


def cache_problem(folder: Path | None = None) -> str | None:
    """Return a sentence if the cache folder cannot be written, else None.

    Args:
        folder: ``monai-transfer-bundles`` in ``$XDG_CACHE_HOME`` or ``~/.cache`` by default.
    """
    folder = cache_folder() if folder is None else folder
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        return None
    return f"the cache folder {folder} cannot be written; set XDG_CACHE_HOME to a writable folder."


def label_warning(installed: Callable[[str], str] = importlib.metadata.version) -> str | None:
    """Return a sentence if the installed MONAI Label is open to attacks by those who reach its server, else None.

    Up to 0.8.5: path traversal in the upload endpoints (CVE-2026-133968, exploited in the wild) and code by a
    request's ``bundle_path`` (GHSA-j5c7-p3x5-gw2x). From 0.7.0 to 0.8.7: code by request values that begin with ``$``
    (GHSA-gfjg-c3x6-24gw).

    Args:
        installed: gives the version of a distribution, raises ``PackageNotFoundError`` where there is none.
    """
    from packaging.version import Version

    found = _version("monailabel", installed)
    if found is None or Version(found) >= Version(LABEL_SAFE):
        return None
    return (
        f"monailabel {found} lets anybody who reaches its server run code on it (CVE-2026-133968, GHSA-j5c7-p3x5-gw2x, "
        f"GHSA-gfjg-c3x6-24gw); run `pip install 'monailabel>={LABEL_SAFE}'`, and if the package index "
        "does not have it yet, start the server with `--host 127.0.0.1 --uvicorn_app "
        "common.label_guard:app`."
    )


def main() -> int:
    """Print the table and the problems; returns the exit status."""
    rows: list[tuple[str, str, str]] = [
        ("python", platform.python_version(), sys.executable),
        (__package__ or "common", __version__, str(PACKAGE_FOLDER)),
    ]
    problems = import_problems()
    try:
        needed = requirements()
    except (ImportError, RuntimeError) as error:
        needed = []
        hint = f"; run `pip install {error.name}`." if isinstance(error, ImportError) else ""
        problems.append(f"{error}{hint}")
    for requirement in needed:
        if not _extra(requirement):
            rows.append((requirement.name, _version(requirement.name) or "missing", f"needs {requirement.specifier}"))
    problems += version_problems(needed)
    rows += [_extra_row(extra, needed) for extra in EXTRAS if any(_extra(r) == extra for r in needed)]
    device_rows, device_problem = _devices()
    rows += device_rows
    problems += [problem for problem in (device_problem, cache_problem()) if problem]
    rows.append(("cache folder", "", str(cache_folder())))
    rows.append(("PYTHONSAFEPATH", "set" if _safe_path() else "not set", "whether the working folder is left out"))

    first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
    for name, value, note in rows:
        print(f"{name:<{first}}  {value:<{second}}  {note}".rstrip())
    print()
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    warning = label_warning()
    if warning:
        print(f"warning: {warning}", file=sys.stderr)
    if not problems:
        print("no problem was found.")
    return 1 if problems else 0


def _requirement_lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]


def _extra(requirement: Requirement) -> str | None:
    marker = str(requirement.marker or "")
    return next((extra for extra in EXTRAS if f'extra == "{extra}"' in marker), None)


def _version(name: str, installed: Callable[[str], str] = importlib.metadata.version) -> str | None:
    try:
        return installed(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _safe_path() -> bool:
    """Whether Python excludes the working folder from the import path (possible since Python 3.11)."""
    return bool(getattr(sys.flags, "safe_path", False))


def _find(path: Sequence[str], folder: str) -> ModuleSpec | None:
    """What ``import common`` finds on ``path`` ("" stands for ``folder``) or through an editable install."""
    places = [entry or folder for entry in path]
    for finder in sys.meta_path:
        spec = finder.find_spec("common", places) if hasattr(finder, "find_spec") else None
        if spec is not None:
            return spec
    return None


def _location(spec: ModuleSpec | None) -> Path | None:
    """Folder of a package, file of a module."""
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).resolve()
    return Path(spec.origin).resolve() if spec.origin else None


def _foreign_distribution(package_folder: Path) -> str | None:
    """Version of PyPI's ``common`` if its files lie in our package folder."""
    try:
        other = importlib.metadata.distribution("common")
    except importlib.metadata.PackageNotFoundError:
        return None
    same = Path(str(other.locate_file("common"))).resolve() == package_folder.resolve()
    return other.version if same else None


def _extra_row(extra: str, needed: Iterable[Requirement]) -> tuple[str, str, str]:
    missing = [r.name for r in needed if _extra(r) == extra and _version(r.name) is None]
    state = f"lacks {', '.join(missing)}: `pip install '.[{extra}]'` in a checkout" if missing else "complete"
    return f"extra {extra}", "", f"{EXTRAS[extra]}; {state}"


def _devices() -> tuple[list[tuple[str, str, str]], str | None]:
    """Table rows for torch's devices, and a sentence if torch cannot be imported."""
    try:
        import torch
    except ImportError as error:
        return [], f"torch cannot be imported ({error}); install the build for this machine from pytorch.org."
    from .precision import bfloat16_pays

    if torch.cuda.is_available():
        count, name = torch.cuda.device_count(), torch.cuda.get_device_name()
        bf16 = "bfloat16" if bfloat16_pays("cuda") else "float32, since it has no bfloat16"
        return [("device", "cuda", f"{count} x {name}, CUDA {torch.version.cuda}, {bf16}")], None
    if torch.backends.mps.is_available():
        return [("device", "mps", "Apple GPU; pass --device to use it, the bundles choose CUDA or the CPU")], None
    bf16 = "bfloat16" if bfloat16_pays("cpu") else "float32, since it has no AVX-512 BF16 or AMX"
    return [("device", "cpu", f"{torch.get_num_threads()} threads, {bf16}; no CUDA device is visible to torch")], None


if __name__ == "__main__":
    sys.exit(main())
