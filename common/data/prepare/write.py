from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...json_files import write_json
from ..datalist import SECTIONS, DatalistError, Problem, datalist_item, read_datalist

LISTS = (*SECTIONS, "unlabelled")
LAYOUTS = ("bids", "decathlon", "folders")
"""Names that `prepare` gives sets of anybody's scans: they say of no item where it comes from."""


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

    Items without a `domain` get the name of their datalist: its `name`, or the file's name without its ending if there
    is none, if several have the same, or if it is that of a layout (`LAYOUTS`). So a source and a target set stay
    apart, and subjects with the same number do not count as one person. The `label_scheme` is that of the masks.

    Raises:
        DatalistError: a file cannot be read, an item cannot be used, two datalists would be one domain, or their masks
            are numbered in several ways.
    """
    files = [Path(path) for path in paths]
    contents = [read_datalist(path) for path in files]
    names = [str(content.get("name") or path.stem) for path, content in zip(files, contents, strict=True)]
    names = [
        path.stem if name in LAYOUTS or names.count(name) > 1 else name for path, name in zip(files, names, strict=True)
    ]
    merged: dict[str, Any] = {"name": "+".join(names), **{name: [] for name in LISTS}}
    named: dict[str, Path] = {}  # by the domain that a file's items get from it
    masks: dict[Path, str | None] = {}  # how those of a file are numbered
    for path, content, domain in zip(files, contents, names, strict=True):
        for x, section in _items(path, content):
            if x.get("domain") is None:
                if named.setdefault(domain, path) != path:
                    raise DatalistError(
                        f"{named[domain]} and {path} would both be the domain {domain!r}: rename one of the files, or "
                        "give their items a `domain`."
                    )
                x["domain"] = domain
            if isinstance(x.get("label"), str | list):
                masks[path] = content.get("label_scheme")
            merged[section].append(x)
    label_schemes = set(masks.values()) or {content.get("label_scheme") for content in contents}
    if len(label_schemes) > 1 and masks:
        said = [f"in {path} {'it is not stated' if x is None else f'as {x!r}'}" for path, x in masks.items()]
        raise DatalistError(
            f"The masks are numbered in several ways ({', '.join(said)}): merge those of one `label_scheme`, which "
            "each file states, or take it out of all files if the config translates the labels of each domain."
        )
    if len(label_schemes) == 1 and None not in label_schemes:
        merged["label_scheme"] = label_schemes.pop()
    return merged


def _items(path: Path, content: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """The items of a datalist with absolute paths, and the list that each belongs to.

    Raises:
        DatalistError: a list is none, or an item cannot be used.
    """
    problems: list[Problem] = []
    for name in (*LISTS, "unlabeled"):
        entries = content.get(name, [])
        if not isinstance(entries, list):
            raise DatalistError(f"{path}: {name!r} is no list; correct it, or take it out.")
        for number, entry in enumerate(entries):
            has_label = isinstance(entry, dict) and entry.get("label") not in (None, "", [])
            label_key = "label" if has_label else None
            x = datalist_item(entry, path.parent.absolute(), "image", label_key, problems, f"{path}: {name}[{number}]")
            if x is None:
                where, what = problems[0]
                raise DatalistError(f"{where} {what}; correct it.")
            yield x, "unlabelled" if name == "unlabeled" else name
