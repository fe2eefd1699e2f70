from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ..files import atomic_write
from .shipped import find_encoder

__all__ = ["FORMAT_VERSION", "read_encoder", "read_record", "save_encoder"]

FORMAT_VERSION = 2
"""Version of the record in the file's header; a reader refuses newer ones. From 2 on files carry a digest."""

DIGEST = "sha256"
"""Entry of the stored record with the digest of everything else; readers do not see it."""

SINGLE: dict[str, type] = {
    "architecture": dict,
    "format": int,
    "architecture.in_channels": int,
    "scans": dict,
    "preparation": dict,
    "preparation.format": int,
}
LISTS = ("spatial_size", "spacing", "value_range", "architecture.grid", "architecture.patch_size")
"""Entries of a record that readers compute with: of one type, or a list of numbers. Each may be missing or null."""

PACKAGES = ("torch", "monai", "numpy", "monai-transfer-bundles")


def save_encoder(encoder: nn.Module, path: str | os.PathLike, record: Mapping[str, Any]) -> None:
    """Write an encoder's state dict and the facts needed to use it in one safetensors file, atomically.

    Args:
        encoder: its ``state_dict()`` is written; ``architecture()``, if it has that method, goes into the record.
        path: target; parent folders are made. The old file stays until the new one is complete.
        record: JSON-serialisable facts: ``method``, ``preparation`` (``common.preparation``), ``spatial_size`` of one
            input of the encoder, ``data``, ``epochs``, ``config_digest``, ``scans`` (``common.data.seen``). The format
            version and package versions are added.

    Raises:
        TypeError: the record holds a value that JSON cannot store.
    """
    record = dict(record)
    record["format"] = FORMAT_VERSION
    architecture: Any = getattr(encoder, "architecture", None)
    if architecture is not None:
        record["architecture"] = architecture()
    record["packages"] = {name: _version(name) for name in PACKAGES}
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in encoder.state_dict().items()}
    write_state(state, path, record)


def write_state(state: dict[str, torch.Tensor], path: str | os.PathLike, record: Mapping[str, Any]) -> None:
    """Write tensors, a record and their digest to ``path`` atomically, with the mode of the umask."""
    record = {**record, "format": FORMAT_VERSION}
    # In the record and not beside it: safetensors writes several entries in any order, so that bytes would differ.
    header = json.dumps(record | {DIGEST: _digest(state, record)})
    with atomic_write(path) as temporary:
        try:
            save_file(state, temporary, metadata={"record": header})
        except SafetensorError as error:  # what the system says, too, such as of a full disk
            raise OSError(str(error)) from error


def read_encoder(path: str | os.PathLike) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """State dict and record of an encoder file, or of an included encoder by its name.

    Raises:
        FileNotFoundError, ValueError: there is no such file, it is not a safetensors file, its record is missing,
            malformed or of a newer format, or its content does not match its digest. Older files have no digest.
    """
    path = find_encoder(path)
    try:
        state, metadata = read_safetensors(path)
    except ValueError as error:
        with path.open("rb") as start:
            if start.read(2) == b"PK":  # a zip file, as torch.save writes
                raise ValueError(
                    f"{path} is a PyTorch checkpoint, most likely of a whole network, not an encoder file: give the "
                    "encoder.safetensors that pre-training wrote, or convert foreign weights with "
                    "`python -m common.weights convert`."
                ) from error
        raise
    record = _parse(path, metadata)
    digest = record.pop(DIGEST, None)
    if digest != _digest(state, record) and (digest is not None or record.get("format") == FORMAT_VERSION):
        raise ValueError(f"{path} is damaged (its content does not match its digest): take another copy of it.")
    return state, _checked(path, record)


def read_record(path: str | os.PathLike) -> dict[str, Any]:
    """Record of an encoder file, without its tensors and without a check of its digest.

    Raises:
        FileNotFoundError, ValueError: as ``read_encoder``.
    """
    path = find_encoder(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError):
        return read_encoder(path)[1]  # says what is wrong
    record = _parse(path, metadata)
    record.pop(DIGEST, None)
    return _checked(path, record)


def _parse(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    header = metadata.get("record")
    try:
        record = json.loads(header or "")
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise ValueError(
            f"{path} has no record of its pre-processing, so it is not an encoder file; convert foreign weights with "
            "`python -m common.weights convert`."
        )
    return record


def _checked(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    wrong = next((key for key in (*SINGLE, *LISTS) if not _well_formed(key, _value(record, key))), None)
    if wrong is not None:
        raise ValueError(
            f"{path} has a malformed record ({wrong} is {_value(record, wrong)!r}); write the encoder file again."
        )
    if (record.get("format") or 0) > FORMAT_VERSION:
        raise ValueError(
            f"{path} has format {record['format']}, but this version reads up to {FORMAT_VERSION}; upgrade."
        )
    return record


def read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        ValueError: it is not such a file, or cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a readable safetensors file ({error}); it may be cut short.") from error


def _digest(state: Mapping[str, torch.Tensor], record: Mapping[str, Any]) -> str:
    """SHA-256 of names, types, shapes and bytes of all tensors and of the record."""
    digest = hashlib.sha256(json.dumps(record).encode())
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _value(record: Mapping[str, Any], key: str) -> Any:
    for part in key.split("."):
        record = (record or {}).get(part)  # type: ignore[assignment]
    return record


def _well_formed(key: str, value: Any) -> bool:
    if value is None or (key == "architecture.patch_size" and isinstance(value, int)):
        return True
    if key in SINGLE:
        return isinstance(value, SINGLE[key]) and not isinstance(value, bool)
    return isinstance(value, list) and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in value)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
