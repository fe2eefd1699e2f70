from __future__ import annotations

import gzip
import math
import os
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from monai.config import PathLike
from monai.data import ITKReader, NumpyReader
from monai.utils import ensure_tuple

from ..volumes import VolumeError

__all__ = ["ArrayReader", "MetaImageReader", "NrrdReader"]

MAX_HEADER = 1 << 24  # segmentations of hundreds of structures have headers of 100 KB
CHUNK = 1 << 20


@dataclass(frozen=True)
class _Stored:
    """Where the voxels of an image lie, and how."""

    files: list[Path]
    start: int  # of the voxels, or of what they are packed in, in each file
    packing: str | None  # "zlib" or "gzip"
    skipped: int  # bytes in each file that come before the voxels once they are unpacked
    size: int | None  # bytes of all voxels; None if the header leaves it open
    big_endian: bool


class _CheckedReader(ITKReader):
    """MONAI's `ITKReader` for formats that ITK reads without checking that the voxels are whole.

    This reader compares ITK's result with the checksum. Only if they differ does it unpack the voxels itself, in pieces
    of 1 MiB, to say what is wrong.
    """

    endings: tuple[str, ...]

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Whether all files have a name of the format."""
        return all(os.fspath(file).lower().endswith(self.endings) for file in ensure_tuple(filename))

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> Any:
        """Read an ITK image, or a list of them.

        Raises:
            VolumeError: compressed voxels are damaged, or there are not as many bytes of voxels as the header says.
        """
        files = [Path(file) for file in ensure_tuple(data)]
        try:
            read = super().read(data, **kwargs)
        except Exception:
            for file in files:
                _check(self.stored(file))
            raise
        for file, image in zip(files, read if isinstance(read, list) else [read], strict=True):
            stored = self.stored(file)
            if not _is_what_was_packed(stored, image):
                _check(stored)
        return read

    @staticmethod
    def stored(file: Path) -> _Stored | None:
        """Where a file's header says that its voxels are; `None` if it does not say, which ITK judges alone."""
        raise NotImplementedError


class MetaImageReader(_CheckedReader):
    """MONAI's `ITKReader` for MetaImage files (`.mha`, `.mhd`) that checks checksum and number of the voxels.

    ITK prints "Uncompress failed" if compressed voxels are damaged, and goes on with what it has.
    """

    endings = (".mha", ".mhd")

    @staticmethod
    def stored(file: Path) -> _Stored | None:
        """Where a file's header says that its voxels are."""
        header = {}
        with open(file, "rb") as stream:
            while stream.tell() < MAX_HEADER:  # a file without the last key is for ITK to refuse
                key, _, value = stream.readline(MAX_HEADER).decode("latin-1").partition("=")
                header[key.strip()] = value.strip()
                if key.strip() == "ElementDataFile" or not key:
                    break
            start = stream.tell()
        if header.get("BinaryData", "").lower() != "true":
            return None
        where = header.get("ElementDataFile", "")
        path = file
        if where.upper() != "LOCAL":
            path, start = file.parent / where, 0
            if not path.is_file():  # a list or a pattern of files, or one that ITK misses
                return None
        try:
            ahead = int(header.get("HeaderSize", 0))
            shape = [int(n) for n in header["DimSize"].split()]
            width = _METAIMAGE_BYTES[header["ElementType"]]
            size = math.prod(shape) * int(header.get("ElementNumberOfChannels", 1)) * width
        except (KeyError, ValueError):  # for ITK to judge
            ahead, size = 0, None
        order = header.get("BinaryDataByteOrderMSB", header.get("ElementByteOrderMSB", ""))
        return _Stored(
            files=[path],
            start=ahead if ahead > 0 else start,
            packing="zlib" if header.get("CompressedData", "").lower() == "true" else None,
            skipped=0,
            size=None if ahead < 0 else size,  # the voxels are the end of the file
            big_endian=order.lower() == "true",
        )


class NrrdReader(_CheckedReader):
    """MONAI's `ITKReader` for NRRD files (`.nrrd`, `.nhdr`) that checks checksum and number of the voxels.

    Not every build of ITK compares gzip's checksum. The format is that of
    https://teem.sourceforge.net/nrrd/format.html
    """

    endings = (".nrrd", ".nhdr")

    @staticmethod
    def stored(file: Path) -> _Stored | None:
        """Where a file's header says that its voxels are.

        Raises:
            VolumeError: they are compressed with bzip2.
        """
        header: dict[str, str] = {}
        listed: list[str] | None = None
        with open(file, "rb") as stream:
            if not stream.readline(CHUNK).startswith(b"NRRD"):
                return None
            while stream.tell() < MAX_HEADER:
                line = stream.readline(CHUNK).decode("latin-1")
                text = line.strip()
                if listed is not None and text:  # the rest of the header
                    listed.append(text)
                    continue
                if not text:  # an empty line, or the end of a detached header
                    break
                key, colon, value = text.partition(": ")
                if colon and not text.startswith("#") and ":=" not in key:
                    header[key.replace(" ", "").lower()] = value.strip()
                    if key.replace(" ", "").lower() == "datafile" and value.split()[:1] == ["LIST"]:
                        listed = []
            start = stream.tell()
        encoding = header.get("encoding", "").lower()
        if encoding in ("bz2", "bzip2"):
            raise VolumeError("is compressed with bzip2, which ITK does not read; save it with gzip compression")
        if encoding not in ("raw", "gz", "gzip"):
            return None
        try:
            lines, skipped = int(header.get("lineskip", 0)), int(header.get("byteskip", 0))
            files = [file]
            if "datafile" in header:
                names = listed if listed is not None else _numbered(header["datafile"])
                files, start = [file.parent / name for name in names], 0
            size = math.prod(int(n) for n in header["sizes"].split()) * _nrrd_bytes(header["type"])
        except (KeyError, ValueError, TypeError):  # for ITK to judge
            return None
        if lines or not all(path.is_file() for path in files):
            return None
        return _Stored(
            files=files,
            start=start,
            packing=None if encoding == "raw" else "gzip",
            skipped=max(skipped, 0),
            size=None if skipped < 0 else size,  # the voxels are the end of the file
            big_endian=header.get("endian", "").lower() == "big",
        )


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


def _is_what_was_packed(stored: _Stored | None, image: Any) -> bool:
    """Whether an image of ITK has the checksum that its file stores after the compressed voxels.

    False if they cannot be compared, and for files that are not compressed and thus have none.
    """
    import itk

    if stored is None or stored.packing is None or stored.skipped or len(stored.files) != 1:
        return False
    with open(stored.files[0], "rb") as stream:
        stream.seek(stored.start)
        is_gzip = stream.read(2) == b"\x1f\x8b"
        stream.seek(max(stored.start, stream.seek(0, os.SEEK_END) - 8))
        end = stream.read()
    voxels = itk.array_view_from_image(image)
    if stored.size is not None and voxels.nbytes != stored.size:
        return False
    if stored.big_endian != (sys.byteorder == "big"):
        voxels = voxels.byteswap()
    voxels = np.ascontiguousarray(voxels).data.cast("B")
    if is_gzip:
        length = len(voxels) % 2**32
        return end == zlib.crc32(voxels).to_bytes(4, "little") + length.to_bytes(4, "little")
    return zlib.adler32(voxels) == int.from_bytes(end[4:], "big")


def _check(stored: _Stored | None) -> None:
    """Read the packed voxels to their end, including the checksum, and compare their number with the header."""
    if stored is None:
        return
    count = 0
    for path in stored.files:
        try:
            count += max(0, _unpacked_size(path, stored) - stored.skipped)
        except EOFError as error:
            raise VolumeError("is damaged (its compressed voxels end too early)") from error
        except (zlib.error, OSError) as error:
            if getattr(error, "errno", None) is not None:  # of the disk
                raise
            raise VolumeError(f"is damaged (checksum or compressed voxels: {error})") from error
    if stored.size is not None and count != stored.size:
        raise VolumeError(f"is damaged (it has {count} bytes of voxels, but its header says {stored.size})")


def _unpacked_size(path: Path, stored: _Stored) -> int:
    """Bytes that a file holds after `start`, once unpacked. Its checksums are compared."""
    if stored.packing is None:
        return path.stat().st_size - stored.start
    with open(path, "rb") as stream:
        stream.seek(stored.start)
        if stored.packing == "zlib":
            return _inflated_size(stream)
        with gzip.GzipFile(fileobj=stream) as unpacked:
            return sum(len(piece) for piece in iter(lambda: unpacked.read(CHUNK), b""))


def _inflated_size(stream: IO[bytes]) -> int:
    unpack = zlib.decompressobj(wbits=47)  # zlib's or gzip's, as ITK
    count = 0
    while not unpack.eof:
        packed = unpack.unconsumed_tail or stream.read(CHUNK)
        piece = unpack.decompress(packed, CHUNK)
        if not packed and not piece:
            raise EOFError
        count += len(piece)
    return count


# Of MetaIO's MET_ValueTypeSize: a long has 4 bytes on every system.
_METAIMAGE_BYTES = {
    **dict.fromkeys(("MET_CHAR", "MET_UCHAR"), 1),
    **dict.fromkeys(("MET_SHORT", "MET_USHORT"), 2),
    **dict.fromkeys(("MET_INT", "MET_UINT", "MET_LONG", "MET_ULONG", "MET_FLOAT"), 4),
    **dict.fromkeys(("MET_LONG_LONG", "MET_ULONG_LONG", "MET_DOUBLE"), 8),
}

_NRRD_BYTES = {
    **dict.fromkeys(("char", "uchar", "int8", "int8_t", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "ushort", "int16", "int16_t", "uint16", "uint16_t"), 2),
    **dict.fromkeys(("int", "uint", "int32", "int32_t", "uint32", "uint32_t", "float"), 4),
    **dict.fromkeys(("long long", "longlong", "ulonglong", "int64", "int64_t", "uint64", "uint64_t", "double"), 8),
}


def _nrrd_bytes(kind: str) -> int:
    """Bytes of a voxel, such as 2 of `unsigned short int`."""
    return _NRRD_BYTES[kind.lower().removeprefix("un").removeprefix("signed ").removesuffix(" int")]


def _numbered(where: str) -> list[str]:
    """The files of a header's `data file`: one name, or a pattern such as `slice%03d.raw 1 20 1`."""
    pattern, *numbers = where.split()
    if "%" not in pattern or len(numbers) not in (3, 4):
        return [where]
    first, last, step = map(int, numbers[:3])
    return [pattern % n for n in range(first, last + (1 if step > 0 else -1), step)]
