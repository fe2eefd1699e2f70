"""One item of a data set in a file; only the accessed parts of its arrays are read.

The file is a safetensors file, which other programs can open: a JSON header, then the bytes of each array. A record in
the header holds the rest of the item, with metadata and operations of its images, small arrays, and the checksum of the
large ones. The header begins with the checksum of the rest of it, which is compared whenever the file is opened.
"""

from __future__ import annotations

import base64
import json
import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor

from ..files import atomic_write

__all__ = ["SMALL", "NotStorableError", "StoredItemError", "read_item", "write_item"]

SMALL = 1024
"""Largest number of elements of an array in the record."""
ALIGNMENT = 4096
"""Arrays begin at multiples of this in the file."""
BLOCK = 1 << 24
BEGIN = b'{"__metadata__": {"header_crc32": "'
"""Of each header; eight hexadecimal digits follow. Files of earlier versions begin otherwise, and hold no item."""
DIGITS = 8

DTYPES = {
    "BOOL": np.dtype(bool),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "I16": np.dtype("<i2"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}
"""By safetensors' names."""


class NotStorableError(ValueError):
    """A value has a type that cannot be stored; the message names it."""


class StoredItemError(ValueError):
    """A file holds no complete item; the message is the end of a sentence that begins with the file."""


def write_item(path: str | os.PathLike, item: Any, key: str, slices_first: bool = False) -> None:
    """Write an item to a file, atomically, with checksums of its header and of its arrays.

    Args:
        path: the file; parent folders are made.
        item: nested mappings, lists and tuples of tensors (with MONAI's metadata), arrays, numbers, strings.
        key: identity of the item, which reading compares.
        slices_first: whether to store images slice by slice along the last axis, to read a few slices without the rest.

    Raises:
        NotStorableError: the item has a value of another type.
        OSError: the file cannot be written, such as on a full disk; names it.
    """
    arrays: list[np.ndarray] = []
    content = _encode(item, arrays, slices_first)
    order = sorted(range(len(arrays)), key=lambda number: -arrays[number].itemsize)  # each begins at its alignment
    metadata = {"header_crc32": "0" * DIGITS}
    header: dict[str, Any] = {"__metadata__": metadata}
    end = checksum = 0
    codes = {dtype: code for code, dtype in DTYPES.items()}
    for number in order:
        array = arrays[number]
        begin, end = end, end + array.nbytes
        header[str(number)] = {"dtype": codes[array.dtype], "shape": list(array.shape), "data_offsets": [begin, end]}
        checksum = zlib.crc32(_bytes(array), checksum)
    metadata["record"] = json.dumps({"key": key, "crc32": checksum, "item": content})
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    text = BEGIN + _header_checksum(text) + text[len(BEGIN) + DIGITS :]
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for number in order:
            file.write(_bytes(arrays[number]))


def read_item(path: str | os.PathLike, key: str, check: bool = False) -> Any:
    """Read an item written by `write_item`.

    Its large tensors stay in the file, and only accessed parts are read. Changes to them do not reach the file.

    Args:
        path: the file.
        key: identity given to `write_item`.
        check: whether to read the large arrays, too, and compare their checksum.

    Raises:
        FileNotFoundError: there is no such file.
        StoredItemError: it is cut short, was written by another version, holds another item, or its header is damaged;
            with ``check`` also if an array is.
    """
    header, start = _header(Path(path))
    record = json.loads(header.pop("__metadata__")["record"])
    size = start + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if record.get("key") != key:
        raise StoredItemError("holds another item")
    if os.path.getsize(path) != size:
        raise StoredItemError(f"has {os.path.getsize(path)} bytes, not {size}")
    if check and _checksum(Path(path), start) != record["crc32"]:
        raise StoredItemError("has a content that does not match its checksum")
    arrays = {}
    for name, entry in header.items():
        shape, offset = tuple(entry["shape"]), start + entry["data_offsets"][0]
        arrays[int(name)] = np.memmap(path, DTYPES[entry["dtype"]], "c", offset, shape)
    return _decode(record["item"], arrays)


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The header, whose checksum is right, and where the arrays begin."""
    with open(path, "rb") as file:
        first = file.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
        # Ahead of reading it: a damaged length may be larger than the memory.
        text = file.read(length) if length <= os.fstat(file.fileno()).st_size else b""
    if not text.startswith(BEGIN):
        raise StoredItemError("has no header that can be read")
    if len(text) != length or text[len(BEGIN) :][:DIGITS] != _header_checksum(text):
        raise StoredItemError("has a header that does not match its checksum")
    return json.loads(text), 8 + length


def _header_checksum(text: bytes) -> bytes:
    """Hexadecimal digits for a header's text, of all but these digits themselves."""
    return b"%08x" % zlib.crc32(text[len(BEGIN) + DIGITS :])


def _checksum(path: Path, start: int) -> int:
    value = 0
    with open(path, "rb") as file:
        file.seek(start)
        while block := file.read(BLOCK):
            value = zlib.crc32(block, value)
    return value


def _bytes(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _encode(value: Any, arrays: list[np.ndarray], slices_first: bool) -> Any:
    """A value as JSON; other types become a mapping that names the type."""
    if value is None or (isinstance(value, bool | int | float | str) and not isinstance(value, np.generic)):
        return value
    if isinstance(value, list):
        return [_encode(one, arrays, slices_first) for one in value]
    if isinstance(value, Mapping):
        pairs = [[_encode(part, arrays, slices_first) for part in pair] for pair in value.items()]
        return {"type": "dict", "value": pairs}
    if isinstance(value, tuple):
        return {"type": "tuple", "value": [_encode(one, arrays, slices_first) for one in value]}
    if isinstance(value, torch.dtype):
        return {"type": "dtype", "value": str(value).removeprefix("torch.")}
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufcUS":
        kind = "array" if isinstance(value, np.ndarray) else "number"
        return {"type": kind, **_small(np.asarray(value))}
    if isinstance(value, torch.Tensor):
        plain = value.as_tensor() if isinstance(value, MetaTensor) else value
        made: dict[str, Any] = {"type": "tensor"}
        if isinstance(value, MetaTensor):
            made["state"] = _encode(vars(value), arrays, False)
        array = plain.numpy(force=True)
        if array.size <= SMALL or array.dtype not in DTYPES.values():
            return made | _small(array)
        if slices_first and array.ndim > 2:
            array, made["slices_first"] = np.moveaxis(array, -1, 0), True
        arrays.append(np.ascontiguousarray(array))
        return made | {"at": len(arrays) - 1}
    raise NotStorableError(f"a value of type {type(value).__name__} ({str(value)[:40]})")


def _small(array: np.ndarray) -> dict[str, Any]:
    text = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"dtype": array.dtype.str, "shape": list(array.shape), "value": text}


def _decode(value: Any, arrays: Mapping[int, np.ndarray]) -> Any:
    if isinstance(value, list):
        return [_decode(one, arrays) for one in value]
    if not isinstance(value, dict):
        return value
    kind = value["type"]
    if kind == "dict":
        return {_decode(name, arrays): _decode(one, arrays) for name, one in value["value"]}
    if kind == "tuple":
        return tuple(_decode(value["value"], arrays))
    if kind == "dtype":
        return getattr(torch, value["value"])
    if "at" in value:
        tensor = torch.from_numpy(arrays[value["at"]])
        tensor = tensor.movedim(0, -1) if value.get("slices_first") else tensor
    else:
        array = np.frombuffer(base64.b64decode(value["value"]), value["dtype"]).reshape(value["shape"]).copy()
        if kind != "tensor":
            return array if kind == "array" else array[()]
        tensor = torch.from_numpy(array)
    if "state" in value:
        tensor = MetaTensor(tensor)
        tensor.__dict__.update(_decode(value["state"], arrays))
    return tensor
