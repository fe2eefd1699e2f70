"""``python -m common.weights list``, ``check FILE``, ``convert SOURCE OUTPUT``, ``show FILE``, ``model FILE OUT``."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable

from ..command_line import run_command
from .check import check, published
from .convert import convert
from .encoder_file import read_encoder
from .model_file import save_model


def show(path: str) -> str:
    """The record and the tensors of an encoder file, as text."""
    state, record = read_encoder(path)
    rows = [f"{name}  {tuple(tensor.shape)}  {tensor.dtype}" for name, tensor in state.items()]
    return "\n".join([json.dumps(record, indent=4), *rows])


def model(path: str, output: str) -> str:
    """Write an encoder file that holds the last layers, too, as a bundle's ``model.pt``, for MONAI Label and packs.

    Args:
        path: an encoder file, or the name of one that comes along.
        output: such as ``bundles/ssl3d/models/model.pt``.

    Raises:
        ValueError: the file holds no last layers.
    """
    state, record = read_encoder(path)
    task = (record.get("preparation") or {}).get("task")
    if task is None:
        raise ValueError(
            f"{path} has no last layers, which tell classes: fine-tune it with configs/train.json, or pre-train "
            "with presets/whole_net.json."
        )
    save_model(state, output, {name: record[name] for name in ("preparation", "scans") if name in record})
    return f"{output} tells the classes of {task}."


@functools.wraps(convert)
def _convert(*args, **kwargs) -> str:
    return json.dumps(convert(*args, **kwargs), indent=4)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    commands: dict[str, Callable[..., str]] = {
        "list": published,
        "check": check,
        "convert": _convert,
        "show": show,
        "model": model,
    }
    run_command(commands, "python -m common.weights")
