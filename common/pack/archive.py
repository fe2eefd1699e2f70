"""The folder and the archive of a packed bundle."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .. import doctor
from ..bundles import PARTS, find_bundle
from ..json_files import read_json, to_json
from .card import Scores, model_card
from .modules import package_files
from .overlays import changed_configs
from .readme import note
from .targets import config_targets, rewrite_config
from .weights import check_networks, check_urls, check_weights, compare_weights, large_files, models_of

__all__ = ["pack"]

# What the collection's bundles say of themselves, and what a pack with weights says in its place.
WITHOUT_WEIGHTS = {
    " Training configurations; no weights are shipped.": "",
    "No data and no weights are shipped": "No data are shipped",
    " No weights are shipped.": "",
    "\nNo weights are shipped.\n": "\n",
}


def pack(
    bundle: Path,
    output: Path,
    weights: Sequence[Path] = (),
    weight_urls: Mapping[str, str] | None = None,
    force: bool = False,
    config_file: Sequence[Path] = (),
    override: Mapping[str, Any] | None = None,
    name: str | None = None,
    scores: Scores | None = None,
    card: bool = False,
    licence: str | None = None,
) -> tuple[Path, Path]:
    """Write ``output/NAME/`` and ``output/NAME_vVERSION.zip``; the same input gives the same bytes.

    It packs ``LICENSE``, ``configs/`` and ``docs/``, the modules of ``common`` that the configs use (as
    ``scripts/common/``), and the named weights. Everything else in the bundle's folder is left out.

    Args:
        bundle: folder of the bundle, or the name of an included one.
        output: folder to write to; made if missing.
        weights: files to pack as ``models/<file name>``. The name of an included encoder adds its file and its page,
            and the pack knows it by the same name.
        weight_urls: addresses by path of a local copy. Such a file is not packed; ``large_files.yml`` lists its address
            and SHA-256 for ``python -m monai.bundle download_large_files``.
        force: replace the output of an earlier call.
        config_file: overlays to write into the base files, in order, each from the working folder, the bundle or its
            ``configs/``. ``metadata.json`` then states the resulting channels, classes and sizes. The ``datalist`` of
            ``inference.json`` stays unchanged unless ``override`` names it. Absolute paths of data in a user's overlay
            are left out.
        override: values by id, after the overlays.
        name: name of the packed bundle; the folder's name if None. MONAI Label offers it as the model's name.
        scores: scores measured with these weights, for ``eval_metrics`` of ``metadata.json`` and the card.
        card: write ``README.md``, the pack's page on the Hugging Face hub.
        licence: licence of the weights, by the hub's identifier, for the card.

    Raises:
        FileNotFoundError: a part of the bundle, an overlay or a file of weights is missing.
        FileExistsError: the output exists and ``force`` is false.
        ValueError: a config or a module names ``common`` in a way that cannot be packed, MONAI Label would take the
            weights for those of another network, a file of weights is damaged, has another format, or belongs to
            another network than the pack's, a model was trained on images prepared in another way than by
            ``inference.json`` (unless ``accept_preparation`` is set), or an overlay changes nothing or cannot be
            applied.
    """
    bundle = find_bundle(bundle)
    urls = {Path(path): url for path, url in (weight_urls or {}).items()}
    _check_bundle(bundle)
    from ..weights import shipped  # loads torch

    named = [path for path in weights if str(path) in shipped.shipped_encoders() and not path.is_file()]
    weights, named = [path for path in weights if path not in named], [shipped.find_encoder(path) for path in named]
    check_urls(urls)
    check_weights([*weights, *urls])
    version = read_json(bundle / "configs" / "metadata.json")["version"]
    name = name or bundle.name
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"--name {name!r}: use letters, digits, '_', '-' and '.', it becomes a folder's name.")
    folder, archive = output / name, output / f"{name}_v{version}.zip"
    changed = changed_configs(bundle, config_file, override or {})
    inference, train = (_packed(bundle, part, changed) for part in ("inference.json", "train.json"))
    files = [*weights, *named, *urls]
    models = models_of(files, inference)
    by_name = next((path.stem for path in named if path in models), None)
    check_networks(files, models, inference, train)
    compare_weights(models, inference)
    for target in (folder, archive):
        if target.exists() and not force:
            raise FileExistsError(f"{target} exists; pass --force to replace it, or another --output.")

    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output, prefix=f".{name}.") as made:
        draft = Path(made) / name
        about = partial(note, bundle, version, config_file, override or {}, changed, weights, urls, by_name)
        targets, metadata, terms = _write_bundle(bundle, draft, changed, about, files, scores)
        _write_code(draft / "scripts" / "common", targets)
        _copy_weights(draft, weights, named)
        if card:
            page = model_card(name, json.loads(metadata), scores, licence, bool(files), terms)
            _write(draft / "README.md", page)
        if urls:
            _write(draft / "large_files.yml", large_files(urls))
        draft_archive = Path(made) / archive.name
        _zip(draft, draft_archive)
        if folder.exists():
            os.replace(folder, Path(made) / "replaced")
        os.replace(draft, folder)
        os.replace(draft_archive, archive)
    return folder, archive


def _write_bundle(
    bundle: Path,
    draft: Path,
    changed: Mapping[str, str],
    about: Callable[[], str],
    files: Sequence[Path],
    scores: Scores | None,
) -> tuple[set[str], str, str]:
    """Write the bundle's own files as packed.

    Args:
        changed: text of the configs that overlays or values change, by name.
        about: makes what ``docs/README.md`` says of the pack, if there is such a file.
        files: the weights.

    Returns:
        The names in ``common`` that the configs use, ``metadata.json`` and ``docs/data_license.txt``.
    """
    targets: set[str] = set()
    metadata, terms = "{}", ""
    for path in _bundle_files(bundle):
        part = path.relative_to(bundle)
        if part.parts[0] == "configs" and path.suffix == ".json":
            text = changed.get(path.name) if len(part.parts) == 2 else None
            read_json(path)  # what is no JSON is refused by its name
            text = path.read_text(encoding="utf-8-sig") if text is None else text
            if path.name == "metadata.json":
                text = metadata = _with_scores(_about_weights(text, files), scores)
            else:
                text = rewrite_config(text, str(part))
                targets |= config_targets(text)
            _write(draft / part, text)
        elif part.as_posix() == "docs/README.md":
            title, _, rest = path.read_text(encoding="utf-8").partition("\n")
            _write(draft / part, f"{title}\n\n{about()}\n---\n{_about_weights(rest, files)}")
        elif part.as_posix() == "docs/data_license.txt":
            terms = _about_weights(path.read_text(encoding="utf-8"), files)
            _write(draft / part, terms)
        else:
            _copy(path, draft / part)
    return targets, metadata, terms


def _write_code(code: Path, targets: set[str]) -> None:
    """Write the modules of ``common`` that the targets need, and what they require."""
    _write(code.parent / "__init__.py", "")
    for place, content in package_files(targets).items():
        (code / place).parent.mkdir(parents=True, exist_ok=True)
        (code / place).write_bytes(content)
    needed = [str(requirement) for requirement in doctor.requirements() if requirement.marker is None]
    _write(code / "requirements.txt", "\n".join(needed) + "\n")


def _copy_weights(draft: Path, weights: Sequence[Path], named: Sequence[Path]) -> None:
    """Copy files of weights, and those of included encoders (``named``), with the pages of the latter."""
    from ..weights import shipped  # loads torch

    for path in weights:
        _copy(path, draft / "models" / path.name)
    for encoder in named:
        _copy(encoder, draft / "scripts" / "common" / "weights" / "encoders" / encoder.name)
    for path in [*weights, *named]:
        about = path.with_suffix(".md")  # what it was made from, its licence and limits
        if path.resolve().parent == shipped.FOLDER.resolve() and about.is_file():
            _copy(about, draft / "docs" / about.name)


def _packed(bundle: Path, part: str, changed: Mapping[str, str]) -> dict[str, Any]:
    """A config as packed; empty if the bundle has none."""
    path = bundle / "configs" / part
    return json.loads(changed[part]) if part in changed else read_json(path) if path.is_file() else {}


def _about_weights(text: str, files: Sequence[Path]) -> str:
    for before, after in WITHOUT_WEIGHTS.items() if files else ():
        text = text.replace(before, after)
    return text


def _with_scores(metadata: str, scores: Scores | None) -> str:
    if scores is None:
        return metadata
    content = json.loads(metadata)
    content["eval_metrics"] = {f"mean_{name}": round(value, 4) for name, value in scores.means.items()}
    return to_json(content)


def _check_bundle(bundle: Path) -> None:
    for part in ("LICENSE", "configs/metadata.json"):
        if not (bundle / part).is_file():
            raise FileNotFoundError(f"{bundle} is not a complete bundle: it has no {part}.")


def _bundle_files(bundle: Path) -> Iterator[Path]:
    for name in PARTS:
        part = bundle / name
        found = [part] if part.is_file() else sorted(part.rglob("*"))
        yield from (path for path in found if path.is_file() and not path.name.startswith("."))


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


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
