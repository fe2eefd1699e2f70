from __future__ import annotations

import os
from typing import Any

from ..json_files import write_json
from ..preparation import field_text
from .encoder_file import read_record

__all__ = ["prepare"]

IDS = ("spacing", "orientation")
"""Fields of a record that are ids of the bundles, too."""


def prepare(path: str | os.PathLike, output: str | os.PathLike) -> str:
    """Write a config file that prepares images as those that an encoder was trained on, to be named last of all.

    It sets ``spacing`` and ``orientation``, where the record of the encoder file states them. What it is trained with,
    is evaluated and labels with it, too. Intensities are no ids that all bundles share: the text says what the record
    says of them, and fine-tuning warns where its transforms differ.

    Args:
        path: an encoder file, or the name of one that comes along.
        output: the config file, such as ``encoder.json``.

    Raises:
        FileNotFoundError, ValueError: as ``read_encoder``; the record states neither of the two for all images.
    """
    record = read_record(path)
    made: dict[str, Any] = record.get("preparation") or {}
    # files from before there was a record of the preparation have fields of these names
    stated = {name: made.get(name) or record.get(name) for name in IDS}
    ids = {name: value for name, value in stated.items() if isinstance(value, (list, str))}
    if not ids:
        raise ValueError(
            f"{path} does not say of which spacing or orientation all of its images were: prepare yours as its authors "
            "say, by the ids spacing and orientation."
        )
    write_json(output, ids)
    missing = [name for name in IDS if name not in ids]
    intensity = field_text(made["intensity"]) if made.get("intensity") else record.get("intensity")
    lines = [f"{output} sets {', '.join(f'{name} {value}' for name, value in ids.items())}."]
    lines += [f"The record of {path} says nothing of the {' and '.join(missing)}."] * bool(missing)
    lines.append(f"Intensities it was made with: {intensity or 'not known'}. Fine-tuning warns where they differ.")
    lines.append(
        f"Name it last: --config_file \"['configs/train.json','{output}']\", and behind evaluate.json and "
        f"inference.json alike; common.compare --config_file {output}."
    )
    return "\n".join(lines)
