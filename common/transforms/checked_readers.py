from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import PathLike
from monai.data import ITKReader, NumpyReader
from monai.utils import ensure_tuple

from ..volumes import VolumeError

__all__ = ["ArrayReader", "PackedReader"]

MAX_HEADER = 1 << 16
META_IMAGE = (".mha", ".mhd")
NRRD = (".nrrd", ".nhdr")


class PackedReader(ITKReader):
    """MONAI's `ITKReader` for MetaImage (`.mha`, `.mhd`) and NRRD (`.nrrd`, `.nhdr`) that checks checksums.

    If compressed voxels are damaged, ITK goes on with what it has. It prints "Uncompress failed" for MetaImage, and for
    NRRD it does not compare the checksum. This reader compares ITK's result with the checksum. Only if they differ does
    it unpack the voxels itself, to say what is wrong.
    """

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Whether all files have the name of a MetaImage or NRRD file."""
        return all(os.fspath(file).lower().endswith(META_IMAGE + NRRD) for file in ensure_tuple(filename))

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> Any:
        """Read an ITK image, or a list of them.

        Raises:
            VolumeError: compressed voxels are damaged.
        """
        files = [Path(file) for file in ensure_tuple(data)]
        try:
            read = super().read(data, **kwargs)
        except Exception:
            for file in files:
                _check_compressed(file)
            raise
        for file, image in zip(files, read if isinstance(read, list) else [read], strict=True):
            if not _is_what_was_packed(file, image):
                _check_compressed(file)
        return read


class ArrayReader(NumpyReader):
    """MONAI's `NumpyReader` that refuses complex numbers; MONAI would drop their imaginary part."""

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> Any:
        """The arrays.

        Raises:
            VolumeError: an array is complex.
        """
        read = super().read(data, **kwargs)
        if any(np.iscomplexobj(array) for array in (read if isinstance(read, list) else [read])):
            raise VolumeError("holds complex numbers; save the magnitude")
        return read


def _is_what_was_packed(file: Path, image: Any) -> bool:
    """Whether an image of ITK has the checksum that its file stores after the compressed voxels.

    False if they cannot be compared, and for files that are not compressed and thus have none.
    """
    import itk

    found = _compressed(file)
    if found is None:
        return False
    path, start, big_endian = found
    with open(path, "rb") as stream:
        stream.seek(start)
        is_gzip = stream.read(2) == b"\x1f\x8b"
        stream.seek(max(start, stream.seek(0, os.SEEK_END) - 8))
        end = stream.read()
    voxels = itk.array_view_from_image(image)
    if big_endian != (sys.byteorder == "big"):
        voxels = voxels.byteswap()
    voxels = np.ascontiguousarray(voxels).data.cast("B")
    if is_gzip:
        return zlib.crc32(voxels) == int.from_bytes(end[:4], "little")
    return zlib.adler32(voxels) == int.from_bytes(end[4:], "big")


def _check_compressed(file: Path) -> None:
    """Read the compressed voxels of a file to their end, including the checksum."""
    found = _compressed(file)
    if found is None:
        return
    path, start, _ = found
    unpack = zlib.decompressobj(wbits=47)  # zlib's or gzip's, as ITK
    try:
        unpack.decompress(path.read_bytes()[start:])
    except zlib.error as error:
        raise VolumeError(f"is damaged (checksum or compressed voxels: {error})") from error
    if not unpack.eof:
        raise VolumeError("is damaged (its compressed voxels end too early)")


def _compressed(file: Path) -> tuple[Path, int, bool] | None:
    """The file with the compressed voxels of an image file, their offset, and whether they are big-endian."""
    return _compressed_nrrd(file) if file.name.lower().endswith(NRRD) else _compressed_meta_image(file)


def _compressed_meta_image(file: Path) -> tuple[Path, int, bool] | None:
    with open(file, "rb") as stream:
        header = {}
        while stream.tell() < MAX_HEADER:  # a file without the last key is for ITK to refuse
            key, _, value = stream.readline(MAX_HEADER).decode("latin-1").partition("=")
            header[key.strip()] = value.strip()
            if key.strip() == "ElementDataFile" or not key:
                break
        start = stream.tell()
    if header.get("CompressedData", "").lower() != "true":
        return None
    order = header.get("BinaryDataByteOrderMSB", header.get("ElementByteOrderMSB", ""))
    big_endian = order.lower() == "true"
    where = header.get("ElementDataFile", "")
    if where.upper() == "LOCAL":
        return file, start, big_endian
    path = file.parent / where  # a list or a pattern of files, or one that ITK will miss, is not there
    return (path, 0, big_endian) if path.is_file() else None


def _compressed_nrrd(file: Path) -> tuple[Path, int, bool] | None:
    with open(file, "rb") as stream:
        header = {}
        while stream.tell() < MAX_HEADER:
            line = stream.readline(MAX_HEADER).decode("latin-1").strip()
            if not line:
                break
            key, _, value = line.partition(": ")  # `:=` is of keys that only users know
            header[key.lower().replace(" ", "")] = value.strip()
        start = stream.tell()
    # Lines are skipped before unpacking, and bytes after it, so that these are within what the checksum is of.
    if header.get("encoding", "").lower() not in ("gzip", "gz") or header.get("lineskip", "0") != "0":
        return None
    big_endian = header.get("endian", "").lower() == "big"
    if "datafile" not in header:
        return file, start, big_endian
    path = file.parent / header["datafile"]  # a list or a pattern of files is not there
    return (path, 0, big_endian) if path.is_file() else None
