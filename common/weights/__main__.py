"""``python -m common.weights list``, ``check FILE``, ``convert SOURCE OUTPUT``, ``show FILE``, ``prepare FILE OUT``,
``model FILE OUT``, ``fingerprint FILE SCANS OUT``."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..checkpoint_file import read_checkpoint
from ..command_line import run_command
from ..data.image_list import list_images
from ..fingerprint import FingerprintInTheMaking, fingerprint_in
from .check import check
from .convert import convert
from .encoder_file import read_encoder, write_state
from .model_file import save_model
from .prepare import prepare
from .published import published


def show(path: str, full: bool = False) -> str:
    """Describe an encoder file: network, pre-training, images, origin, sizes.

    Args:
        path: an encoder file, or the name of an included one.
        full: show the whole record and every tensor, not the
            summary.
    """
    state, record = read_encoder(path)
    if full:
        rows = [f"{name}  {tuple(tensor.shape)}  {tensor.dtype}" for name, tensor in state.items()]
        return "\n".join([json.dumps(record, indent=4), *rows])
    rows = [f"{name:13}{text}" for name, text in _summary(record).items()]
    parameters = sum(tensor.numel() for tensor in state.values())
    rows.append(f"{'tensors':13}{len(state)}, {parameters:,} numbers")
    return "\n".join([path, *rows, "--full True prints the whole record and every tensor."])


def _summary(record: Mapping[str, Any]) -> dict[str, str]:
    """Summarise a record in words; missing fields are left out."""
    images = record.get("preparation") or {}
    images = {name: images.get(name, record.get(name)) for name in ("channels", "orientation", "spacing", "task")}
    steps = (record.get("preparation") or {}).get("intensity") or []
    images["intensity"] = ", ".join(step["transform"] for step in steps) or record.get("intensity")
    images["crop"] = record.get("spatial_size")
    origin = record.get("origin") or {}
    scans = {part: len(found.get("files", ())) for part, found in (record.get("scans") or {}).items()}
    found = {
        "network": (record.get("architecture") or {}).get("name"),
        "method": record.get("method"),
        "epochs": record.get("epochs"),
        "loss": record.get("val_loss"),
        "images": ", ".join(f"{name} {value}" for name, value in images.items() if value is not None),
        "data": record.get("data"),
        "conversion": "; ".join(record.get("conversion") or []),
        "scans": ", ".join(f"{count} of {part}" for part, count in scans.items()),
        "origin": ", ".join(f"{name} {value}" for name, value in origin.items() if value is not None),
    }
    return {name: str(value) for name, value in found.items() if value not in (None, "")}


def model(path: str, output: str) -> str:
    """Write an encoder file that includes the last layers as a bundle's ``model.pt``, for MONAI Label and packs.

    Args:
        path: an encoder file, or the name of an included one.
        output: such as ``bundles/ssl3d/models/model.pt``.

    Raises:
        ValueError: the file holds no last layers.
    """
    state, record = read_encoder(path)
    task = (record.get("preparation") or {}).get("task")
    if task is None:
        raise ValueError(
            f"{path} has no last layers to predict classes: fine-tune it with configs/train.json, or pre-train "
            "with presets/whole_net.json."
        )
    kept = ("preparation", "architecture", "scans", "fingerprint")
    save_model(state, output, {name: record[name] for name in kept if name in record})
    return f"{output} predicts the classes of {task}."


def fingerprint(path: str, scans: str, output: str) -> str:
    """Note in a model's file what scans it is for, where it does not say, so that inference refuses others.

    Files of earlier versions and of elsewhere lack it, and so do those of nets that were trained on no scans.

    Args:
        path: a ``model.pt``, or an encoder file that holds the last layers.
        scans: folder of scans like those that the net was trained on; up to 50 of them are read.
        output: the same model with its fingerprint, in the format of ``path``.

    Raises:
        FileNotFoundError, ValueError: as reading does; the file has a fingerprint, or no scan can be read.
    """
    is_encoder = Path(path).suffix != ".pt"
    state, record = read_encoder(path) if is_encoder else read_checkpoint(path)
    if fingerprint_in(record) is not None:
        raise ValueError(f"{path} has a fingerprint of the scans that it was trained on already.")
    items = list_images(scans)
    made = FingerprintInTheMaking(items).record()
    if not made:
        raise ValueError(f"none of the {len(items)} scans in {scans} can be read.")
    write = write_state if is_encoder else save_model
    write(state, output, {**record, **made})
    return f"{output} is for scans like the {made['fingerprint']['scans']} that were read of {scans}."


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
        "prepare": prepare,
        "model": model,
        "fingerprint": fingerprint,
    }
    run_command(commands, "python -m common.weights")
