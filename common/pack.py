"""Make a bundle self-contained: ``python -m common.pack bundles/NAME``.

A bundle of this collection names shared code by ``common.`` paths and so needs the collection installed. The packed
bundle carries that code under ``scripts/common/``, the place that MONAI's model zoo and MONAI Label expect, and its
configs name it there.

MONAI Label reads one file a purpose, ``configs/inference.json`` and ``configs/train.json``, and no overlays.
``--config_file`` and ``--override`` write them into these files, so that another network, task or size can be served.
"""

from __future__ import annotations

import argparse
import ast
import copy
import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import doctor
from .volumes import first_line

__all__ = ["apply_overlays", "check_imports", "pack", "rewrite_config"]

# What a bundle consists of. Anything else in its folder is what runs wrote, perhaps from patients' images.
BUNDLE_FILES = ("LICENSE", "configs", "docs")
# Code and the tables that go with it (`package_data` of setup.cfg).
PACKAGE_SUFFIXES = (".json", ".py")
# Before anything else, so that `initialize` finds `scripts` from any working folder: MONAI adds the bundle's folder to
# the import path only after it.
ADD_BUNDLE_TO_PATH = '{"_target_": "site.addsitedir", "sitedir": "@bundle_root"}'
# Config files that stand alone; `evaluate.json` and those of several GPUs are overlays on them.
BASE_FILES = ("pretrain.json", "train.json", "inference.json")
# Ids of `inference.json` that an image's scale comes from.
INTENSITY_IDS = ("intensity", "intensity_range")


def pack(
    bundle: Path,
    output: Path,
    weights: Sequence[Path] = (),
    weight_urls: Mapping[str, str] | None = None,
    force: bool = False,
    config_file: Sequence[Path] = (),
    override: Mapping[str, Any] | None = None,
    name: str | None = None,
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
        config_file: overlays that are written into the base files, in order, each in the working folder, the bundle or
            its ``configs/``. ``metadata.json`` then names the channels, classes and sizes that come of it. The
            ``datalist`` of ``inference.json`` stays as it is, unless ``override`` names it.
        override: values by id, after the overlays.
        name: what the packed bundle is called, the folder's name if None. MONAI Label offers it as the model's name.

    Raises:
        FileNotFoundError: a part of the bundle, an overlay or a file of weights is missing.
        FileExistsError: the output exists and ``force`` is false.
        ValueError: a config or a module names ``common`` in a way that cannot be packed, MONAI Label would take
            the weights for another network's, a file of weights is damaged or none, or an overlay changes nothing or
            cannot be applied.
    """
    bundle = bundle.resolve()
    urls = {Path(path): url for path, url in (weight_urls or {}).items()}
    _check_bundle(bundle)
    _check_weights([*weights, *urls])
    version = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))["version"]
    name = name or bundle.name
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"--name {name!r}: use letters, digits, '_', '-' and '.', it becomes a folder's name.")
    folder, archive = output / name, output / f"{name}_v{version}.zip"
    changed = _changed_configs(bundle, config_file, override or {})
    for target in (folder, archive):
        if target.exists() and not force:
            raise FileExistsError(f"{target} exists; pass --force to replace it, or another --output.")

    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output, prefix=f".{name}.") as made:
        draft = Path(made) / name
        for path in _bundle_files(bundle):
            part = path.relative_to(bundle)
            if part.parts[0] == "configs" and path.suffix == ".json":
                text = changed.get(path.name) if len(part.parts) == 2 else None
                text = path.read_text(encoding="utf-8") if text is None else text
                _write(draft / part, text if path.name == "metadata.json" else rewrite_config(text, str(part)))
            elif part.as_posix() == "docs/README.md":
                note = _note(bundle, version, config_file, override or {}, changed, weights, urls)
                title, _, rest = path.read_text(encoding="utf-8").partition("\n")
                _write(draft / part, f"{title}\n\n{note}\n---\n{rest}")
            else:
                _copy(path, draft / part)
        code = draft / "scripts" / "common"
        _write(code.parent / "__init__.py", "")
        for path in _package_files():
            part = path.relative_to(doctor.PACKAGE_FOLDER)
            if path.suffix == ".py":
                check_imports(path.read_text(encoding="utf-8"), f"common/{part}")
            _copy(path, code / part)
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


def apply_overlays(base: Mapping[str, Any], overlays: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge overlays into the config of a base file, as ``monai.bundle run`` does with a list of files.

    An overlay serves several base files. What changes a part that this one lacks, and ids that nothing in it reads
    (such as the pretext in ``inference.json``), are left out.

    Raises:
        ValueError: a ``+`` entry meets a value of another kind.
    """
    from monai.bundle import ConfigParser
    from monai.bundle.utils import merge_kv

    parser = ConfigParser(config=copy.deepcopy(dict(base)))
    for overlay in overlays:
        for key, value in overlay.items():
            path = key.lstrip("+").replace("::", "#")
            there = path.rpartition("#")[0] if not key.startswith("+") else path
            if not there or there in parser:
                merge_kv(parser, key, copy.deepcopy(value))
    config: dict[str, Any] = parser.get()
    while True:
        others = {key: _references(value) for key, value in config.items()}
        unread = [key for key in config if key not in base and not any(key in o for k, o in others.items() if k != key)]
        if not unread:
            return config
        for key in unread:
            del config[key]


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
    parser.add_argument(
        "--config_file",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="overlays to write into the base files, for what reads one file only, such as MONAI Label",
    )
    parser.add_argument(
        "--override", nargs="+", default=[], metavar="ID=VALUE", help="values by id, after the overlays"
    )
    parser.add_argument("--name", help="name of the packed bundle (default: that of the folder)")
    options = parser.parse_args(arguments)
    urls = dict(item.partition("=")[::2] for item in options.weights_url)
    if not all(urls.values()):
        parser.error("--weights-url wants FILE=URL")
    override = dict(item.partition("=")[::2] for item in options.override)
    if not all("=" in item for item in options.override):
        parser.error("--override wants ID=VALUE")
    try:
        folder, archive = pack(
            options.bundle,
            options.output,
            options.weights,
            urls,
            options.force,
            options.config_file,
            {key: _value(text) for key, text in override.items()},
            options.name,
        )
    except (OSError, ValueError) as error:
        print(f"cannot pack {options.bundle}: {error}", file=sys.stderr)
        return 1
    print(f"wrote {folder} and {archive}")
    return 0


def _changed_configs(bundle: Path, files: Sequence[Path], override: Mapping[str, Any]) -> dict[str, str]:
    """Text of the config files that overlays change, by file name."""
    if not files and not override:
        return {}
    folder = bundle / "configs"
    found = [_find_config(path, bundle) for path in files]
    overlays = [(path.name, json.loads(path.read_text(encoding="utf-8"))) for path in found]
    overlays += [(f"--override {key}", {key: value}) for key, value in override.items()]
    bases = {name: _read(folder / name) for name in BASE_FILES if (folder / name).is_file()}
    known = set().union(*bases.values(), *(_references(config) for config in bases.values()))
    evaluate = _read(folder / "evaluate.json") if (folder / "evaluate.json").is_file() else {}
    known |= {key.split("#")[0] for key in evaluate}
    known |= {name for _, overlay in overlays for name in _references(overlay)}
    for source, overlay in overlays:
        for key in overlay:
            if key.lstrip("+").replace("::", "#").split("#")[0] not in known:
                raise ValueError(f"{source} sets `{key}`, and no base file of {bundle.name} has such an id.")
    changes = [overlay for _, overlay in overlays]
    result = {name: apply_overlays(config, changes) for name, config in bases.items()}
    if "datalist" in bases.get("inference.json", {}):
        # A list of the data set that was trained on is none of the images to come, a folder of which is enough.
        lists = [{key: value for key, value in one.items() if key != "datalist"} for one in changes[: len(found)]]
        result["inference.json"] = apply_overlays(bases["inference.json"], [*lists, *changes[len(found) :]])
    if evaluate:
        result["evaluate.json"] = _overlay_overlay(evaluate, changes)
    if "inference.json" in result:
        metadata = _read(folder / "metadata.json")
        result["metadata.json"] = _described(metadata, result["inference.json"], bases["inference.json"])
    return {name: json.dumps(config, indent=4, ensure_ascii=False) + "\n" for name, config in result.items()}


def _overlay_overlay(config: dict[str, Any], changes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """``evaluate.json`` when the files that came after it are written into ``train.json``, before it."""
    from monai.bundle.utils import merge_kv

    config = copy.deepcopy(config)
    for overlay in changes:
        for key, value in overlay.items():
            path = key.lstrip("+").replace("::", "#")
            if path in config:
                merge_kv(config, f"+{path}" if key.startswith("+") else path, copy.deepcopy(value))
            elif any(path.startswith(f"{own}#") for own in config):
                raise ValueError(f"`{key}` changes a part of what evaluate.json sets, which packing cannot do.")
    return config


def _described(metadata: dict[str, Any], config: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """Metadata of the changed inference: ``network_data_format``, which MONAI Label takes the labels from, and the
    sentences on images and classes.
    """
    from monai.bundle import ConfigParser

    from .data import label_names

    parser = ConfigParser(config=config)

    def number(name: str, inside: str) -> int:
        return int(parser.get_parsed_content(name if name in config else inside))

    channels = number("in_channels", "segmentation_net#in_channels")
    classes = number("num_classes", "segmentation_net#out_channels")
    size = [int(voxels) for voxels in parser.get_parsed_content("roi_size")]
    metadata = copy.deepcopy(metadata)
    image = next(iter(metadata["network_data_format"]["inputs"].values()))
    pred = next(iter(metadata["network_data_format"]["outputs"].values()))
    whole = pred["spatial_shape"] == image["spatial_shape"]
    image["spatial_shape"], pred["spatial_shape"] = size, size if whole else [*size[:-1], pred["spatial_shape"][-1]]
    before = image["num_channels"]
    if channels != before:
        names = ["image"] if channels == 1 else [f"image {index}" for index in range(channels)]
        image |= {"num_channels": channels, "channel_def": {str(index): name for index, name in enumerate(names)}}
    # What the base file says of its images, contrasts and scale, holds no longer, and no config says it of others.
    others = channels != before or any(config.get(key) != base.get(key) for key in INTENSITY_IDS)
    if others and "image_classes" in metadata:
        metadata["image_classes"] = f"{'single-channel' if channels == 1 else f'{channels}-channel'} image"
    task = config.get("task")
    if classes != pred["num_channels"] or task != base.get("task"):
        try:
            known = label_names(str(task))
        except ValueError:  # a task of the user's own
            known = {}
        if len(known) != classes:
            known = dict(enumerate(["background", *(f"class {index}" for index in range(1, classes))]))
        pred |= {"num_channels": classes, "channel_def": {str(index): name for index, name in known.items()}}
        if "label_classes" in metadata:
            metadata["label_classes"] = ", ".join(f"{index} {name}" for index, name in known.items())
        if "pred_classes" in metadata:
            metadata["pred_classes"] = re.sub(r"^\d+ channels", f"{classes} channels", metadata["pred_classes"])
    return metadata


def _note(
    bundle: Path,
    version: str,
    files: Sequence[Path],
    override: Mapping[str, Any],
    changed: Mapping[str, str],
    weights: Sequence[Path],
    urls: Mapping[Path, str],
) -> str:
    """What a packed bundle's ``README.md`` says of the pack, before the collection's text."""
    folder = bundle / "configs"
    found = [_find_config(path, bundle).resolve() for path in files]
    # A file from elsewhere by its name alone: the packer's folders are nobody's business.
    shown = [path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name for path in found]
    given = ["--config_file", *shown] if shown else []
    given += ["--override", *(f"{key}={_as_text(value)}" for key, value in override.items())] if override else []
    how = f", with `{shlex.join(given)}`" if given else ""
    source = f"`{bundle.name}` {version} of MONAI Transfer Bundles"
    commands = ["pip install -r scripts/common/requirements.txt"]
    if urls:
        commands.append("python -m monai.bundle download_large_files --bundle_path .   # the weights")
    inference = _command("inference.json", folder, changed)
    if inference:
        own = json.loads(changed["inference.json"]).get("datalist") if changed else None
        if own is not None and own != _read(folder / "inference.json")["datalist"]:
            inference += " --datalist FOLDER"
        held = any(path.name in ("model.pt", "model.ts") for path in [*weights, *urls])
        missing = "" if held else "; after training, there are no weights in this pack"
        commands.append(f"{inference}   # a folder of images{missing}")
    train = _command("train.json", folder, changed)
    if train:
        commands.append(f"{train}{' --datalist LIST.json' if '--dataset_dir' in train else ''}")
    lines = [
        f"Packed by `common.pack` from {source}{how}. In the pack's folder:",
        "",
        "```bash",
        *commands,
        "```",
        "",
        "What follows is the collection's text. In place of its `pip install .` comes the first line above; links to",
        "`../../../` and commands `python -m common...` are of the collection's repository.",
    ]
    if given:
        lines += ["Files and values that are named above are already inside: leave them out of the commands below."]
    return "\n".join([*lines, ""])


def _command(name: str, folder: Path, changed: Mapping[str, str]) -> str:
    """How a config file of the pack is run on a folder of data; empty when there is none."""
    if not (folder / name).is_file():
        return ""
    config = json.loads(changed[name]) if name in changed else _read(folder / name)
    data = " --dataset_dir FOLDER" if "dataset_dir" in config else ""
    return f"python -m monai.bundle run --config_file configs/{name}{data}"


def _as_text(value: Any) -> str:
    """The text that ``_value`` reads as this value."""
    return value if isinstance(value, str) and _value(value) == value else json.dumps(value)


def _find_config(path: Path, bundle: Path) -> Path:
    for folder in (Path(), bundle, bundle / "configs"):
        if (folder / path).is_file():
            return folder / path
    raise FileNotFoundError(f"there is no config file {path}, neither here nor in {bundle} or its configs.")


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _references(value: Any) -> set[str]:
    """Top-level ids that a part of a config refers to."""
    return {name for _, text in _strings(value) for name in re.findall(r"[@%](\w+)", text)}


def _value(text: str) -> Any:
    """A value of the command line: JSON or a Python literal, else the text as it is."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError):
            continue
    return text


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
        _read_weights(path)


def _read_weights(path: Path) -> None:
    """Refuse a file of weights that its users could not read: cut short, damaged, or a page of some server."""
    import torch

    from .checkpoint_file import checked_record, read_checkpoint
    from .weights.encoder_file import read_encoder

    if path.suffix == ".pt":
        content, _ = read_checkpoint(path)
        state = content.get("model", content) if isinstance(content, Mapping) else None
        if not isinstance(state, Mapping) or not any(isinstance(value, torch.Tensor) for value in state.values()):
            raise ValueError(f"{path} holds no state dict: give a model.pt that configs/train.json wrote.")
    elif path.suffix == ".safetensors":
        read_encoder(path)
    elif path.suffix in (".ts", ".onnx"):
        try:
            if path.suffix == ".ts":
                checked_record(path)
                torch.jit.load(path, map_location="cpu")
            elif importlib.util.find_spec("onnx") is not None:
                importlib.import_module("onnx.checker").check_model(str(path))
        except Exception as error:  # a damaged file ends in whatever error its bytes lead to
            raise ValueError(f"{path} is no readable {path.suffix} file ({first_line(error)}).") from error
    else:
        raise ValueError(f"{path} is no file of weights by its name: give .pt, .safetensors, .ts or .onnx.")


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
