"""``python -m common.weights convert SOURCE OUTPUT`` and ``python -m common.weights show FILE``."""

from __future__ import annotations

import functools
import json
import logging

from ..command_line import run_command
from .convert import convert
from .encoder_file import read_encoder


def show(path: str) -> str:
    """The record and the tensors of an encoder file, as text."""
    state, record = read_encoder(path)
    rows = [f"{name}  {tuple(tensor.shape)}  {tensor.dtype}" for name, tensor in state.items()]
    return "\n".join([json.dumps(record, indent=4), *rows])


@functools.wraps(convert)
def _convert(*args, **kwargs) -> str:
    return json.dumps(convert(*args, **kwargs), indent=4)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run_command({"convert": _convert, "show": show}, "python -m common.weights")
