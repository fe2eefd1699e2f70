from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import PathLike
from monai.data import ITKReader, NumpyReader
from monai.utils import ensure_tuple

from ..volumes import VolumeError

__all__ = ["ArrayReader", "MetaImageReader"]

MAX_HEADER = 1 << 16


class MetaImageReader(ITKReader):
    """MONAI's `ITKReader` for MetaImage files (`.mha`, `.mhd`), whose compressed voxels are read to the end first.

    ITK prints "Uncompress failed" where they are damaged and goes on with what it has.
    """

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Whether all files are MetaImage by their names."""
        return all(os.fspath(file).lower().endswith((".mha", ".mhd")) for file in ensure_tuple(filename))

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> Any:
        """An image of ITK, or a list of them.

        Raises:
            VolumeError: compressed voxels are damaged.
        """
        for file in ensure_tuple(data):
            _check_compressed(Path(file))
        return super().read(data, **kwargs)


class ArrayReader(NumpyReader):
    """MONAI's `NumpyReader` that refuses complex numbers, of which MONAI drops the imaginary part."""

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> Any:
        """The arrays.

        Raises:
            VolumeError: an array is complex.
        """
        read = super().read(data, **kwargs)
        if any(np.iscomplexobj(array) for array in (read if isinstance(read, list) else [read])):
            raise VolumeError("holds complex numbers; save the magnitude")
        return read


def _check_compressed(file: Path) -> None:
    """Read the compressed voxels of a MetaImage file to their end, where their checksum stands."""
    with open(file, "rb") as stream:
        header = {}
        while stream.tell() < MAX_HEADER:  # a file without the last key is for ITK to refuse
            key, _, value = stream.readline(MAX_HEADER).decode("latin-1").partition("=")
            header[key.strip()] = value.strip()
            if key.strip() == "ElementDataFile" or not key:
                break
        if header.get("CompressedData", "").lower() != "true":
            return
        where = header.get("ElementDataFile", "")
        if where.upper() != "LOCAL":
            if not (file.parent / where).is_file():  # a list or a pattern of files, or one that ITK will miss
                return
            compressed = (file.parent / where).read_bytes()
        else:
            compressed = stream.read()
    unpack = zlib.decompressobj(wbits=47)  # zlib's or gzip's, as ITK
    try:
        unpack.decompress(compressed)
    except zlib.error as error:
        raise VolumeError(f"is damaged (checksum or compressed voxels: {error})") from error
    if not unpack.eof:
        raise VolumeError("is damaged (its compressed voxels end too early)")
