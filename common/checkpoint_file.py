"""Files from ``torch.save``, with a check of their checksums and a record of how to use the content.

Such a file is a zip archive, so every entry already has a CRC-32; torch writes it and never checks it. So the checksum
only costs a read. The record is one more entry, which torch ignores: MONAI, MONAI Label and
``torch.load(weights_only=True)`` still read the file.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from .files import VOLUME_ENDINGS, atomic_write
from .volumes import first_line

__all__ = [
    "RECORD",
    "add_record",
    "checked_record",
    "parse_record",
    "read_checkpoint",
    "save_checkpoint",
    "stored_record",
]

RECORD = "record.json"
"""Entry of the archive with the record; in ONNX files, the key of the metadata."""


def save_checkpoint(content: Any, path: str | os.PathLike, record: Mapping[str, Any] | None = None) -> None:
    """``torch.save`` with a record, atomically: ``path`` is either the old file or the complete new one.

    Args:
        content: content that ``torch.load(weights_only=True)`` can read.
        path: the file; parent folders are made.
        record: JSON values, such as the preparation of a network's training images.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with zipfile.ZipFile(buffer, "a") as archive:
        _add_entry(archive, record or {})
    with atomic_write(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def read_checkpoint(path: str | os.PathLike, harmless: bool = False) -> tuple[Any, dict[str, Any]]:
    """Content, on the CPU, and record of a file from ``save_checkpoint`` or ``torch.save``; never runs a pickle.

    Args:
        path: the file.
        harmless: whether the file may also hold NumPy numbers and command-line settings (``argparse.Namespace``), as
            DINO's and nnU-Net's files do. They only hold values and run nothing.

    Returns:
        the content, and the record, which is empty if the file has none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read, holds Python objects beside tensors, or its checksums do not match. Files
            written without checksums (``set_crc32_options``) are not compared.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist.")
    try:
        record = checked_record(path)
        archive = _foreign_archive(path)
        if archive is not None:
            raise ValueError(archive)
        with torch.serialization.safe_globals(_harmless() if harmless else []):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive or pickle ends in whatever error its bytes lead to
        said, known = first_line(error), _what_it_is(path)
        if isinstance(error, pickle.UnpicklingError) and known is None:
            found = re.search(r"(?:GLOBAL|unrecognized function|unsupported class) ([\w.]+)", str(error))
            what = f"holds Python objects beside tensors ({found[1]})" if found else _OTHER
            raise ValueError(
                f"{path} {what}, which are not loaded for safety; on a machine you trust, save only its state dict "
                "with torch.save"
            ) from error
        said = said if said.startswith("it is ") else known or said
        raise ValueError(f"{path} is not a readable checkpoint ({said})") from error
    return content, record


_OTHER = "is not a readable checkpoint, or holds Python objects beside tensors"
_FIRST_BYTES = (
    (b"\x89HDF\r\n", "it is an HDF5 file, as Keras writes: give weights of PyTorch"),
    (b"\x1f\x8b", "it is compressed by gzip: unpack it first"),
    (b"version https://git-lfs", "it is a pointer of Git LFS in place of the file: fetch the file with `git lfs pull`"),
    (b"\x93NUMPY", "it is an array of NumPy: give weights of PyTorch"),
)
_PARTS_OF_ARCHIVES = (
    (
        "constants.pkl",
        "it is a TorchScript archive, a network for inference alone: give the state dict it is made from",
    ),
    ("archive_format", "it is a program of torch.export, for inference alone: give the state dict it is made from"),
    ("config.json", "it is an archive of Keras: give weights of PyTorch"),
)


def _foreign_archive(path: Path) -> str | None:
    """What a zip archive is that ``torch.load`` reads no state dict from; None if it may be one."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        names = [name.rpartition("/")[2] for name in archive.namelist()]
    if "data.pkl" in names and "constants.pkl" not in names:
        return None
    found = next((text for part, text in _PARTS_OF_ARCHIVES if part in names), None)
    return found or "it is an archive, but not one that torch.save wrote: unpack it, and give the file of weights in it"


def _is_archive(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # it has the end of one, damaged
        return False


def _what_it_is(path: Path) -> str | None:
    """What a file is that ``torch.load`` cannot read, by its name and first bytes; None if they do not show it."""
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        return "it is empty"
    if path.name.lower().endswith(VOLUME_ENDINGS):
        return "it is an image, not weights"
    if path.suffix.lower() == ".onnx":
        return "it is an ONNX network, for inference alone: give the state dict it is made from"
    known = next((text for first, text in _FIRST_BYTES if start.startswith(first)), None)
    if known is not None:
        return known
    if start[257:262] == b"ustar":
        return "it is a tar archive: unpack it, and give the file of weights in it"
    if start.startswith(b"PK") and not _is_archive(path):
        return "it is cut short or damaged: take another copy of it"
    if re.match(rb"\s*<(!doctype|html|\?xml)", start, re.IGNORECASE):
        return "it is a web page in place of the file: download the file itself"
    try:
        text = start.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return "it is a text file" if text.isprintable() or ("\n" in text and "\x00" not in text) else None


def _harmless() -> list[Any]:
    """Classes and functions that the weights-only reader may call, under all names that NumPy gave them."""
    scalar = np.float64(0).__reduce__()[0]
    types = [np.dtype, *{type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "u1", "?")}]
    return [
        argparse.Namespace,
        *types,
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
    ]


def checked_record(path: Path) -> dict[str, Any]:
    """The record of a file, after a check of its checksums; empty if it has none or is not an archive.

    Raises:
        ValueError, or an error of ``zipfile`` for damaged bytes: a checksum does not match, or the file cannot be read.
    """
    if not zipfile.is_zipfile(path):
        return {}
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip() if any(entry.CRC for entry in archive.infolist()) else None
        if damaged is not None:
            raise ValueError(f"it is damaged: the checksum of {damaged} does not match")
        return _record_in(archive, path)


def stored_record(path: str | os.PathLike) -> dict[str, Any]:
    """The record of a file, without reading anything else; empty if it has none or is not an archive.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the record cannot be read.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                return parse_record((file.metadata() or {}).get("record"), path)
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"the record of {path} cannot be read ({first_line(error)})") from error
    with open(path, "rb") as stream:
        if not zipfile.is_zipfile(stream):
            return {}
        try:
            with zipfile.ZipFile(stream) as archive:
                return _record_in(archive, path)
        except (zipfile.BadZipFile, ValueError) as error:
            raise ValueError(f"the record of {path} cannot be read ({first_line(error)})") from error


def _record_in(archive: zipfile.ZipFile, path: Path) -> dict[str, Any]:
    found = [name for name in archive.namelist() if name.partition("/")[2] == RECORD]
    return parse_record(archive.read(found[0]), path) if found else {}


def add_record(path: str | os.PathLike, record: Mapping[str, Any]) -> None:
    """Add a record to a file that torch wrote, such as a traced net, atomically.

    Raises:
        ValueError: it is not such a file, is damaged, or has another record.
    """
    path = Path(path)
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not a file that torch wrote.")
    had = checked_record(path)
    if had and had != record:
        raise ValueError(f"{path} already has a record of another model: export the net again.")
    if had:
        return
    with atomic_write(path) as temporary:
        shutil.copyfile(path, temporary)
        with zipfile.ZipFile(temporary, "a") as archive:
            _add_entry(archive, record)


def parse_record(text: str | bytes | None, path: Path) -> dict[str, Any]:
    """Parse a record as stored in files; empty if there is none.

    Raises:
        ValueError: it is not a mapping."""
    record = json.loads(text or "{}")
    if not isinstance(record, dict):
        raise ValueError(f"the record of {path} is not a mapping")
    return record


def _add_entry(archive: zipfile.ZipFile, record: Mapping[str, Any]) -> None:
    root = archive.namelist()[0].partition("/")[0]
    archive.writestr(f"{root}/{RECORD}", json.dumps(dict(record), allow_nan=False))
