"""The record of a model in files exported from it.

MONAI's `onnx_export` and `ckpt_export` write only the net. `python -m common.exported MODEL.pt FILE` adds the record of
`model.pt` about its images: to the metadata of an ONNX file, or as one more entry of a traced net. Inference then
compares it like the record of `model.pt`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from .checkpoint_file import RECORD, add_record, checked_record
from .command_line import run_command
from .files import atomic_write
from .volumes import first_line

__all__ = ["add_model_record"]


def add_model_record(model: str, exported: str) -> str:
    """Add the record of a model to a file exported from it.

    Args:
        model: the `model.pt` that the net was exported from.
        exported: an ONNX file (`.onnx`), or a file from `ckpt_export` (`.ts`).

    Returns:
        a sentence that says what was done.

    Raises:
        FileNotFoundError, ValueError: there is no such file; the model has no record; `exported` is neither kind or
            cannot be read.
        ImportError: the package onnx is not installed.
    """
    for path in (model, exported):
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path} does not exist: give the model.pt and the file exported from it.")
    record = checked_record(Path(model))
    if "preparation" not in record:
        raise ValueError(f"{model} has no record of how its images were prepared; train it again to get one.")
    if Path(exported).suffix == ".onnx":
        _add_to_onnx(exported, json.dumps(record, allow_nan=False))
    else:
        add_record(exported, record)
    return f"{exported} has the record of {model}."


def _add_to_onnx(path: str | os.PathLike, text: str) -> None:
    import onnx

    try:
        net = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own kinds
        raise ValueError(f"{path} is not a readable .onnx file ({first_line(error)}).") from error
    kept = {entry.key: entry.value for entry in net.metadata_props} | {RECORD: text}
    onnx.helper.set_model_props(net, kept)
    with atomic_write(path) as temporary:
        temporary.write_bytes(net.SerializeToString())


if __name__ == "__main__":
    run_command(add_model_record, "python -m common.exported")
