from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...json_files import write_json
from ..datalist import SECTIONS, DatalistError, read_datalist

LISTS = (*SECTIONS, "unlabelled")


def write_datalist(path: str | os.PathLike, content: dict[str, Any], force: bool = False) -> None:
    """Write a datalist atomically; absolute paths of images and labels become relative to its folder.

    Raises:
        DatalistError: the file exists and `force` is off.
    """
    path = Path(path).absolute()
    if path.exists() and not force:
        raise DatalistError(f"{path} exists: choose another output, or replace it with --force.")

    def relative(value: Any) -> Any:
        if isinstance(value, list):
            return [relative(v) for v in value]
        return Path(os.path.relpath(value, path.parent)).as_posix()

    content = dict(content)
    for name in LISTS:
        content[name] = [
            x | {k: relative(x[k]) for k in ("image", "label") if isinstance(x.get(k), str | os.PathLike | list)}
            for x in content.get(name, [])
        ]
    if not content["unlabelled"]:
        del content["unlabelled"]
    write_json(path, content)


def merge(paths: Sequence[str | os.PathLike]) -> dict[str, Any]:
    """Merge several datalists list by list, with absolute paths.

    Items without a `domain` get the name of their datalist (its `name`, or the file's name). So a source and a target
    set stay apart, and subjects with the same number do not count as one person. A `label_scheme` stays if all name the
    same one.

    Raises:
        DatalistError: a file cannot be read, or an item is not a dictionary with an image.
    """
    merged: dict[str, Any] = {"name": "", **{name: [] for name in LISTS}}
    names = []
    label_schemes = set()
    for path in map(Path, paths):
        content = read_datalist(path)
        label_schemes.add(content.get("label_scheme"))
        names.append(str(content.get("name") or path.stem))
        base = path.parent.absolute()

        def absolute(value: Any, base: Path = base) -> Any:
            if isinstance(value, list):
                return [absolute(v) for v in value]
            return os.path.normpath(base / value) if isinstance(value, str) else value

        for name in (*LISTS, "unlabeled"):
            for number, entry in enumerate(content.get(name, [])):
                x = {"image": entry} if isinstance(entry, str) else entry
                if not isinstance(x, dict) or "image" not in x:
                    raise DatalistError(f"{path}: {name}[{number}] is not an item with an 'image'; correct it.")
                target = "unlabelled" if name == "unlabeled" else name
                paths_of_item = {k: absolute(x[k]) for k in ("image", "label") if k in x}
                merged[target].append({"domain": names[-1], **x, **paths_of_item})
    merged["name"] = "+".join(names)
    if len(label_schemes) == 1 and None not in label_schemes:
        merged["label_scheme"] = label_schemes.pop()
    return merged
