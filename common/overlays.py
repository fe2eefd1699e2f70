"""Overlays of a bundle's base files: find them, check their order, and parse files and ``id=value``."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["KINDS", "find_overlay", "merge_files", "order_problems", "parse_files", "parse_overrides", "parse_value"]

KINDS = ("datasets", "networks", "tasks", "presets", "pretexts", "schedules")
"""Folders of a bundle's overlays, in the usual order."""


def find_overlay(name: str | Path, bundle: Path, base: Path | None = None) -> Path:
    """Find a config file by name in a folder, in the bundle or in the bundle's ``configs/``, in this order.

    Args:
        name: path of the file, including ``.json``.
        bundle: folder of the bundle.
        base: folder to search first; the working folder if None.

    Raises:
        FileNotFoundError: there is no such file (names the folders).
    """
    base = Path.cwd() if base is None else base
    for folder in (base, bundle, bundle / "configs"):
        if (folder / name).is_file():
            return (folder / name).absolute()
    raise FileNotFoundError(f"No config file {name}: neither in {base} nor in {bundle} or its configs.")


def merge_files(files: Sequence[str | Path]) -> dict[str, Any]:
    """Merge several files into one config, later ones over earlier ones, like ``monai.bundle run``.

    Raises:
        ValueError: a file changes a part that earlier files lack. MONAI would only say "query key" and the part; this
            sentence names the file, and the base file that it is made for.
    """

    paths = [Path(file) for file in files]
    try:
        return _merged(paths)
    except _MISFITS as error:
        late = next(place for place in range(len(paths)) if not _fits(paths[: place + 1]))
        raise ValueError(_misfit_sentence(paths[late], paths[:late])) from error


_MISFITS = (KeyError, IndexError, TypeError)  # what MONAI raises where a part is not there


def _merged(files: Sequence[Path]) -> dict[str, Any]:
    from monai.bundle import ConfigParser

    config: dict[str, Any] = ConfigParser.load_config_files([str(file) for file in files])
    return config


def _fits(files: Sequence[Path]) -> bool:
    try:
        _merged(files)
    except _MISFITS:
        return False
    return True


def _misfit_sentence(late: Path, before: Sequence[Path]) -> str:
    """Say which part a file changes that earlier files lack, and which base file it is made for."""
    from monai.bundle import ConfigParser

    parser = ConfigParser(config=_merged(before))
    keys = [key.lstrip("+") for key in _settings(late, added=True)]
    key = next(key for key in keys if "#" in key and key.rpartition("#")[0] not in parser)
    folder = late.absolute().parent
    folder = folder.parent if folder.name in KINDS else folder
    bases = [folder / name for name in ("pretrain.json", "train.json", "inference.json")]
    right = [base.name for base in bases if base.is_file() and _fits([base, late])]
    use = f"it is for {' and '.join(right)}" if right else "name the file that has it before"
    return f"{late.name} changes `{key}`, but {' + '.join(file.name for file in before)} has no such part: {use}."


def order_problems(files: Sequence[str | Path], given: Collection[str] = ()) -> list[str]:
    """One sentence for each file that silently undoes an earlier overlay.

    Later files win, and most orders make sense. These do not: a part set as a whole after a file of another kind that
    sets a value in it; a data set after a network, a preset, a pretext or a schedule; any of these after a schedule; a
    task whose classes another kind of file changes, or that changes the label scheme of a data set; `evaluate.json`, a
    base file with its own values, after an overlay.

    Args:
        files: config files in their order; only those from the folders `KINDS` have a place.
        given: ids that are set after all files; the order does not matter for them.
    """
    found = [(path, path.parent.name) for path in map(Path, files)]
    contents = {
        path: _settings(path)
        for path, kind in found
        if kind in KINDS or path.name not in ("train.json", "inference.json")
    }
    problems = []
    for place, (late, kind) in enumerate(found):
        base = late.name == "evaluate.json"
        if not base and kind not in KINDS:
            continue
        for early, earlier_kind in found[:place]:
            if early not in contents or (not base and (earlier_kind not in KINDS or earlier_kind == kind)):
                continue
            for key, value in contents[early].items():
                by = next((name for name in contents[late] if key == name or key.startswith(f"{name}#")), key)
                new = contents[late].get(by, value)
                if new == value or {by, key} & set(given):
                    continue
                if (base and by == key) or (not base and _takes_back(earlier_kind, kind, key, by, value, new)):
                    where = "right behind train.json" if base else f"before {early.name}"
                    shown = "" if isinstance(new, dict) else f" to {json.dumps(new)}"
                    problems.append(
                        f"{late.name} comes after {early.name} and sets its `{key}` back{shown}: name it {where}."
                    )
    return problems


def _takes_back(early: str, late: str, key: str, by: str, value: Any, new: Any) -> bool:
    """Whether a file of the kind `late` may undo a file of the kind `early` before it."""
    if key != by:
        return True
    if "tasks" in (early, late):
        changes = early == "tasks" and key == "task"
        return changes or (early == "datasets" and key == "label_scheme" and None not in (value, new))
    return early == "schedules" or late == "datasets"


def _settings(path: Path, added: bool = False) -> dict[str, Any]:
    """Values of a config file by id. Additions to a part (``+``) undo nothing, so they are left out."""
    from monai.bundle import ConfigParser

    content = ConfigParser.load_config_file(path)
    return {key.replace("::", "#"): value for key, value in content.items() if added or not key.startswith("+")}


def parse_files(given: str | Sequence[Any]) -> list[str]:
    """Parse names of config files in MONAI's form (``"['a.json','b.json']"``), or separated by commas or blanks.

    Args:
        given: one such text, or several of them.
    """
    names: list[str] = []
    for text in [given] if isinstance(given, str) else given:
        text = str(text).strip()
        # a blank may stand inside a name
        value = parse_value(text) if text.startswith("[") else re.split(r",|(?<=\.json)\s+|(?<=\.yaml)\s+", text)
        # a name that merely begins with a bracket is a name
        names += [str(name).strip() for name in value] if isinstance(value, list) else [text]
    return [name for name in names if name]


def parse_overrides(given: str | Sequence[str] | Mapping[str, Any] | None, option: str = "override") -> dict[str, Any]:
    """Parse values by id: ``id=value`` separated by blanks or commas, a list of them, or a mapping, also as text.

    Args:
        given: the user's input.
        option: name for error messages.

    Raises:
        ValueError: an entry has no ``=``.
    """
    if given is None:
        return {}
    if isinstance(given, Mapping):
        return dict(given)
    if not isinstance(given, (str, list, tuple)):
        raise ValueError(f"--{option} {given!r}: write id=value.")
    mapping = parse_value(given) if isinstance(given, str) and given.lstrip().startswith("{") else None
    if isinstance(mapping, Mapping):
        return dict(mapping)
    result = {}
    # Both may also stand inside a value, such as a list; in a word of its own a blank belongs to the value.
    words = (
        _apart(given.strip(), r"[\s,]+")
        if isinstance(given, str)
        else [word for entry in given for word in _apart(str(entry), r",\s*")]
    )
    for text in words:
        key, equals, value = str(text).partition("=")
        if not equals:
            raise ValueError(f"--{option} {text!r} has no value; write id=value.")
        result[key] = parse_value(value)
    return result


def _apart(text: str, between: str) -> list[str]:
    """Split a text into its ``id=value``; text in brackets or quotes is one value."""
    words = [""]
    depth, quote, place = 0, "", 0
    start = re.compile(rf"{between}(?=[A-Za-z_][\w#:]*=)")
    while place < len(text):
        found = None if depth or quote else start.match(text, place)
        if found:
            words.append("")
            place = found.end()
            continue
        letter = text[place]
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter if letter in text[place + 1 :] else ""  # an apostrophe is none
        else:
            depth = max(depth + (letter in "[({") - (letter in "])}"), 0)
        words[-1] += letter
        place += 1
    return words


def parse_value(text: str) -> Any:
    """A value of the command line: JSON or a Python literal, else the text as it is."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError):
            continue
    return text
