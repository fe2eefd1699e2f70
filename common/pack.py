"""Make a bundle self-contained: ``python -m common.pack bundles/NAME``.

A bundle of this collection names shared code by ``common.`` paths and so needs the collection installed. The packed
bundle carries that code under ``scripts/common/``, the place that MONAI's model zoo and MONAI Label expect, and its
configs name it there.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import doctor

__all__ = ["check_imports", "pack", "rewrite_config"]

# What a bundle consists of. Anything else in its folder is what runs wrote, perhaps from patients' images.
BUNDLE_FILES = ("LICENSE", "configs", "docs")
# Code and the tables that go with it (`package_data` of setup.cfg).
PACKAGE_SUFFIXES = (".json", ".py")
# Before anything else, so that `initialize` finds `scripts` from any working folder: MONAI adds the bundle's folder to
# the import path only after it.
ADD_BUNDLE_TO_PATH = '{"_target_": "site.addsitedir", "sitedir": "@bundle_root"}'


def pack(
    bundle: Path,
    output: Path,
    weights: Sequence[Path] = (),
    weight_urls: Mapping[str, str] | None = None,
    force: bool = False,
) -> tuple[Path, Path]:
    """Write ``output/NAME/`` and ``output/NAME_vVERSION.zip``; the same input gives the same bytes.

    Taken are ``LICENSE``, ``configs/`` and ``docs/``, the package ``common`` (all but this module) as
    ``scripts/common/``, and the weights that are named. Whatever else lies in the bundle's folder stays behind.

    Args:
        bundle: folder of the bundle.
        output: folder to write to; made when missing.
        weights: files that come along as ``models/<file name>``.
        weight_urls: addresses by path of a local copy; such a file does not come along, ``large_files.yml`` lists
            its address and SHA-256 for ``python -m monai.bundle download_large_files``.
        force: replace what an earlier call wrote.

    Raises:
        FileNotFoundError: a part of the bundle or a file of weights is missing.
        FileExistsError: the output exists and ``force`` is false.
        ValueError: a config or a module names ``common`` in a way that cannot be packed, or MONAI Label would take
            the weights for another network's.
    """
    bundle = bundle.resolve()
    urls = {Path(path): url for path, url in (weight_urls or {}).items()}
    _check_bundle(bundle)
    _check_weights([*weights, *urls])
    version = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))["version"]
    folder, archive = output / bundle.name, output / f"{bundle.name}_v{version}.zip"
    for target in (folder, archive):
        if target.exists() and not force:
            raise FileExistsError(f"{target} exists; pass --force to replace it, or another --output.")

    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output, prefix=f".{bundle.name}.") as made:
        draft = Path(made) / bundle.name
        for path in _bundle_files(bundle):
            name = path.relative_to(bundle)
            if name.parts[0] == "configs" and path.suffix == ".json" and path.name != "metadata.json":
                _write(draft / name, rewrite_config(path.read_text(encoding="utf-8"), str(name)))
            else:
                _copy(path, draft / name)
        code = draft / "scripts" / "common"
        _write(code.parent / "__init__.py", "")
        for path in _package_files():
            name = path.relative_to(doctor.PACKAGE_FOLDER)
            if path.suffix == ".py":
                check_imports(path.read_text(encoding="utf-8"), f"common/{name}")
            _copy(path, code / name)
        needed = [str(requirement) for requirement in doctor.requirements() if requirement.marker is None]
        _write(code / "requirements.txt", "\n".join(needed) + "\n")
        for path in weights:
            _copy(path, draft / "models" / path.name)
        if urls:
            _write(draft / "large_files.yml", _large_files(urls))
        draft_archive = Path(made) / archive.name
        _zip(draft, draft_archive)
        if folder.exists():
            os.replace(folder, Path(made) / "replaced")
        os.replace(draft, folder)
        os.replace(draft_archive, archive)
    return folder, archive


def rewrite_config(text: str, name: str) -> str:
    """Let every ``_target_`` of a config name ``scripts.common.`` in place of ``common.``, and make the bundle's folder
    importable in the first step of ``initialize``; all else stays as it is written.

    Args:
        text: content of the config file.
        name: what error messages call the file.

    Raises:
        ValueError: a ``_target_`` names a part that ``common`` lacks, or another entry refers to ``common``.
    """
    new = re.sub(r'("_target_"\s*:\s*")common\.', r"\1scripts.common.", text)
    new = re.sub(r'"initialize"\s*:\s*\[(\s*)(?!\])', rf'"initialize": [\1{ADD_BUNDLE_TO_PATH},\1', new)
    for where, value in _strings(json.loads(new)):
        if where[-1:] == ("_target_",) and value.startswith("scripts.common."):
            part = doctor.PACKAGE_FOLDER / value.split(".")[2]
            if not part.is_dir() and not part.with_suffix(".py").is_file():
                raise ValueError(f"{name}: `{'#'.join(where)}` names {value[8:]}, and common has no {part.name}.")
        elif "_desc_" not in where and re.search(r"(?<![\w./])common\.[a-z_]|\b(import|from)\s+common\b", value):
            raise ValueError(
                f"{name}: `{'#'.join(where)}` refers to common in `{value}`, where packing cannot change it; "
                "name what it needs in a `_target_`."
            )
    return new


def check_imports(text: str, name: str) -> None:
    """Refuse a Python file that imports ``common`` by name, which a packed bundle has under another one.

    Args:
        text: content of the file.
        name: what the error message calls it.

    Raises:
        ValueError: naming the line.
    """
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            modules = [node.module or ""]
        else:
            continue
        if any(module.split(".")[0] == "common" for module in modules):
            raise ValueError(f"{name}, line {node.lineno}: imports common by name; make the import relative.")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m common.pack", description="Make a bundle self-contained.")
    parser.add_argument("bundle", type=Path, help="folder of the bundle")
    parser.add_argument("--output", type=Path, default=Path("packed"), help="folder to write to (default: packed)")
    parser.add_argument("--weights", type=Path, nargs="+", default=[], metavar="FILE", help="files for models/")
    parser.add_argument(
        "--weights-url",
        nargs="+",
        default=[],
        metavar="FILE=URL",
        help="files for models/ that stay out: large_files.yml lists address and SHA-256",
    )
    parser.add_argument("--force", action="store_true", help="replace what an earlier call wrote")
    options = parser.parse_args(arguments)
    urls = dict(item.partition("=")[::2] for item in options.weights_url)
    if not all(urls.values()):
        parser.error("--weights-url wants FILE=URL")
    try:
        folder, archive = pack(options.bundle, options.output, options.weights, urls, options.force)
    except (OSError, ValueError) as error:
        print(f"cannot pack {options.bundle}: {error}", file=sys.stderr)
        return 1
    print(f"wrote {folder} and {archive}")
    return 0


def _check_bundle(bundle: Path) -> None:
    for part in ("LICENSE", "configs/metadata.json"):
        if not (bundle / part).is_file():
            raise FileNotFoundError(f"{bundle} is no complete bundle: it has no {part}.")


def _check_weights(paths: Sequence[Path]) -> None:
    names = [path.name for path in paths]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two files of weights are called {twice[0]}; models/ holds one of that name.")
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"there is no file of weights {path}.")
        if path.suffix == ".pt" and path.name != "model.pt":
            raise ValueError(
                f"{path.name} cannot stand in models/: MONAI Label may take any .pt there for the network's weights; "
                "name the downstream network's weights model.pt, and an encoder's .safetensors."
            )


def _bundle_files(bundle: Path) -> Iterator[Path]:
    for name in BUNDLE_FILES:
        part = bundle / name
        found = [part] if part.is_file() else sorted(part.rglob("*"))
        yield from (path for path in found if path.is_file() and not path.name.startswith("."))


def _package_files() -> Iterator[Path]:
    for path in sorted(doctor.PACKAGE_FOLDER.rglob("*")):
        if path.suffix in PACKAGE_SUFFIXES and path != Path(__file__).resolve():
            yield path


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _strings(value: Any, where: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _strings(item, (*where, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _strings(item, (*where, str(index)))


def _large_files(urls: Mapping[Path, str]) -> str:
    lines = ["large_files:"]
    for path, url in urls.items():
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        lines += [
            f'  - path: "models/{path.name}"',
            f'    url: "{url}"',
            f'    hash_val: "{digest}"',
            '    hash_type: "sha256"',
        ]
    return "\n".join(lines) + "\n"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")


def _zip(folder: Path, archive: Path) -> None:
    """Zip ``folder`` under its own name, with fixed times, modes and order."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as stream:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                entry = zipfile.ZipInfo(path.relative_to(folder.parent).as_posix(), (1980, 1, 1, 0, 0, 0))
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.create_system = 3
                entry.external_attr = 0o644 << 16
                with path.open("rb") as source, stream.open(entry, "w") as target:
                    shutil.copyfileobj(source, target)


if __name__ == "__main__":
    sys.exit(main())
