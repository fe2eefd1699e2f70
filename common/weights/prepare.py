"""Prepare images as an encoder's or a model's were: read its record, then write or set the config ids."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..json_files import write_json
from ..preparation import PREPARED, compare_preparation, field_text, preparation_record
from ..volumes import is_orientation
from .encoder_file import read_record
from .hub import is_hub_name

__all__ = ["prepare", "prepare_as", "prepared_ids", "read_preparation", "unsaid", "with_preparation"]

logger = logging.getLogger(__name__)

SOURCES = {"encoder": "pretrained_encoder", "model": "model_path"}
"""Words that ``prepare_as`` accepts in place of a file, and the id that names the file."""

CODE = ("$", "@", "%")
"""First characters of the texts that MONAI evaluates in a config."""


def prepare(path: str | os.PathLike, output: str | os.PathLike) -> str:
    """Write a config file that prepares images like an encoder's training images. Name it last.

    It sets those of ``spacing``, ``orientation`` and ``intensity`` that the record of the encoder states. A network
    that is trained with this file must also be evaluated, used and packed with it.

    Args:
        path: an encoder file, the name of an included one, or a ``model.pt``.
        output: the config file, such as ``encoder.json``.

    Raises:
        FileNotFoundError, ValueError: as ``read_preparation`` and ``prepared_ids``.
    """
    record = read_preparation(path)
    ids = prepared_ids(path, record)
    write_json(output, ids)
    lines = [f"{output} sets {_said(ids)}.", *unsaid(path, record, ids)]
    lines.append(
        f"Name it last: --config_file \"['configs/train.json','{output}']\", and behind evaluate.json and "
        f"inference.json alike; common.compare --config_file {output}; common.pack --config_file {output}."
    )
    return "\n".join(lines)


def prepare_as(parser: Any, given: Collection[str] = ()) -> None:
    """Set ids of a config before its first step, so that images are prepared like those of an encoder or a model.

    ``common.checks.check_overrides`` calls this if the id ``prepare_as`` is set to ``encoder`` (the file that
    ``pretrained_encoder`` names), to ``model`` (the file of ``model_path``), or to a file. An id that the record does
    not state keeps its value. So does everything that the config has no id for. The log lists both.

    Args:
        parser: parser of the running config; changed in place.
        given: ids that the user also set.

    Raises:
        FileNotFoundError, ValueError: as in ``prepare``; ``prepare_as`` names no file; the user also set one of the
            ids.
    """
    source = parser.get("prepare_as")
    if not source:
        return
    path = source
    if source in SOURCES:
        name = SOURCES[source]
        path = parser.get_parsed_content(name) if name in parser else None
        if not path:
            raise ValueError(f"--prepare_as {source} needs --{name}: give it, or a file in place of {source}.")
    record = read_preparation(path)
    ids = prepared_ids(path, record)
    _refuse_twice(f"--prepare_as {source}", ids, given)
    known = {name: value for name, value in ids.items() if name in parser}
    for name, value in known.items():
        parser[name] = value
    parser.parse(True)
    logger.info("images are prepared as those of %s: %s.", path, _said(known) or "nothing of it is an id here")
    for line in unsaid(path, record, ids):
        logger.warning("%s", line)
    for name in ids.keys() - known.keys():
        logger.warning("this config has no id %s: that of %s is not taken over.", name, path)


def with_preparation(
    override: Mapping[str, Any], known: Collection[str], encoder: str | os.PathLike | None = None
) -> dict[str, Any]:
    """Replace the id ``prepare_as`` among some values by the ids that it stands for.

    Args:
        override: values by id.
        known: ids of the config; others are left out.
        encoder: the file that ``prepare_as=encoder`` means, if there is one.

    Raises:
        FileNotFoundError, ValueError: as in ``prepared_ids``; the word means no file here; an id is set twice.
    """
    others = {key: value for key, value in override.items() if key != "prepare_as"}
    source = override.get("prepare_as")
    if not source:
        return others
    path = encoder if source == "encoder" else source
    if path is None or path == "model":
        raise ValueError(f"prepare_as={source} does not say which file here: give its path, prepare_as=FILE.")
    ids = prepared_ids(path, read_preparation(path))
    _refuse_twice(f"prepare_as={source}", ids, others)
    return {**others, **{name: value for name, value in ids.items() if name in known}}


def _refuse_twice(said: str, ids: Collection[str], given: Collection[str]) -> None:
    twice = [name for name in ids if name in given]
    if twice:
        raise ValueError(f"{said} sets {' and '.join(twice)}, and so do you: leave out {twice[0]}, or prepare_as.")


def read_preparation(path: str | os.PathLike) -> dict[str, Any]:
    """Read the record of an encoder file, of an included encoder by its name, or of a ``model.pt``.

    Raises:
        FileNotFoundError, ValueError: the file does not exist, cannot be read, or is no encoder file.
    """
    if Path(path).suffix in (".pt", ".pth") and not is_hub_name(path):
        from ..checkpoint_file import read_checkpoint

        return read_checkpoint(path)[1]
    return read_record(path)


def prepared_ids(path: str | os.PathLike, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config ids, with their values, that prepare images as a record states.

    Args:
        path: path of the file, for messages.
        record: record of an encoder or a model.

    Raises:
        ValueError: the record states none of the ids, or is malformed.
    """
    made: dict[str, Any] = dict(record.get("preparation") or {})
    compare_preparation(made, {})  # refuses a newer record
    # older files have no record of the preparation, but fields of these names
    made = {name: made.get(name) or record.get(name) for name in PREPARED[:2]} | {"intensity": made.get("intensity")}
    ids: dict[str, Any] = {}
    if isinstance(made["spacing"], list):  # a mapping is one of several domains
        if not all(isinstance(value, (int, float)) for value in made["spacing"]):
            raise ValueError(f"{path} has a malformed record (spacing is {made['spacing']!r}); write the file again.")
        ids["spacing"] = made["spacing"]
    if isinstance(made["orientation"], str):
        if not is_orientation(made["orientation"]):
            raise ValueError(
                f"{path} has a malformed record (orientation is {made['orientation']!r}); write the file again."
            )
        ids["orientation"] = made["orientation"]
    if made["intensity"] is not None:
        rule = _rule(made["intensity"])
        ids |= {} if rule is None else {"intensity": rule}
    if not ids:
        raise ValueError(
            f"{path} does not say of which spacing, orientation or intensities all of its images were: prepare yours "
            "as its authors say, by the ids spacing, orientation and intensity."
        )
    return ids


def _rule(steps: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the config of the transforms that a record states, or None if it does not suffice to make them again."""
    made = [_transform(step) for step in steps]
    if any(one is None for one in made):
        return None
    rule: dict[str, Any]
    if len(made) == 1 and made[0] is not None:
        rule = made[0]
    else:
        rule = {"_target_": "Compose", "transforms": made} if made else {"_target_": "Identityd", "keys": "image"}
    from monai.bundle import ConfigParser

    try:  # a record may lack some arguments of a step; then the transform made from it differs
        again = preparation_record(ConfigParser(config={"rule": rule}).get_parsed_content("rule"))["intensity"]
    except Exception:  # MONAI wraps errors of transforms
        return None
    return rule if again == list(steps) else None


def _transform(step: Mapping[str, Any]) -> dict[str, Any] | None:
    import inspect

    from monai import transforms as monai_transforms
    from monai.transforms import MapTransform

    from .. import transforms

    name = str(step.get("transform"))
    places = {f"{transforms.__name__}.{name}": transforms, name: monai_transforms}
    found = {target: getattr(module, name, None) for target, module in places.items()}
    classes = {target: one for target, one in found.items() if inspect.isclass(one) and issubclass(one, MapTransform)}
    if not classes:
        return None
    target, kind = next(iter(classes.items()))
    known = inspect.signature(kind).parameters
    arguments = {key: value for key, value in step.items() if key != "transform" and key in known}
    return None if _has_code(arguments) else {"_target_": target, "keys": "image", **arguments}


def _has_code(value: Any) -> bool:
    """Whether a value holds a text that MONAI would evaluate. Records come with files from others, so none may."""
    if isinstance(value, Mapping):
        return any(_has_code(one) for one in (*value, *value.values()))
    if isinstance(value, list):
        return any(map(_has_code, value))
    return isinstance(value, str) and value.lstrip().startswith(CODE)


def _said(ids: Mapping[str, Any]) -> str:
    texts = {name: value for name, value in ids.items() if name != "intensity"}
    if "intensity" in ids:
        rules = ids["intensity"].get("transforms") or [ids["intensity"]]
        texts["intensity"] = ", then ".join(rule["_target_"].rpartition(".")[2] for rule in rules)
    return ", ".join(f"{name} {text}" for name, text in texts.items())


def unsaid(path: str | os.PathLike, record: Mapping[str, Any], ids: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each part of a record that the ids do not reproduce."""
    missing = [name for name in PREPARED[:2] if name not in ids]
    lines = [f"The record of {path} says nothing of one {' and '.join(missing)}."] * bool(missing)
    if "intensity" not in ids:
        steps = (record.get("preparation") or {}).get("intensity")
        words = field_text(steps) if steps else record.get("intensity")
        lines.append(
            f"Intensities that {path} was made with: {words or 'not known'}. They are not taken over; fine-tuning "
            "warns where its own are known to differ."
        )
    if record.get("unexpressed"):
        lines.append(f"No id expresses this of the images of {path}: {record['unexpressed']}.")
    return lines
