"""The note on the pack in a packed bundle's ``README.md``."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..json_files import read_json
from ..overlays import find_overlay, parse_value

__all__ = ["note"]


def note(
    bundle: Path,
    version: str,
    files: Sequence[Path],
    override: Mapping[str, Any],
    changed: Mapping[str, str],
    weights: Sequence[Path],
    urls: Mapping[Path, str],
    by_name: str | None = None,
) -> str:
    """The note on the pack before the collection's text in a packed bundle's ``README.md``.

    Args:
        by_name: name that the pack uses for a model in it.
    """
    folder = bundle / "configs"
    found = [find_overlay(path, bundle).resolve() for path in files]
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
        if own is not None and own != read_json(folder / "inference.json")["datalist"]:
            inference += " --datalist FOLDER"
        held = any(path.name in ("model.pt", "model.ts") for path in [*weights, *urls])
        inference += f" --model_path {by_name}" if by_name and not held else ""
        missing = "" if held or by_name else "; after training, there are no weights in this pack"
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
        "The text below is the collection's. Use the first line above instead of its `pip install .`; links to",
        "`../../../` and commands `python -m common...` belong to the collection's repository. The pack "
        "carries the code",
        "that its configs name, and no more.",
    ]
    if given:
        lines += ["The files and values named above are already included: leave them out of the commands below."]
    return "\n".join([*lines, ""])


def _command(name: str, folder: Path, changed: Mapping[str, str]) -> str:
    """The command to run a config file of the pack on a folder of data; empty if there is none."""
    if not (folder / name).is_file():
        return ""
    config = json.loads(changed[name]) if name in changed else read_json(folder / name)
    data = " --dataset_dir FOLDER" if "dataset_dir" in config else ""
    return f"python -m monai.bundle run --config_file configs/{name}{data}"


def _as_text(value: Any) -> str:
    """The text that ``parse_value`` reads as this value."""
    return value if isinstance(value, str) and parse_value(value) == value else json.dumps(value)
