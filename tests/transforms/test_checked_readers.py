from __future__ import annotations

import bz2
import gzip
import tracemalloc
import zlib

import nibabel as nib
import numpy as np
import pytest
from monai.data import ITKReader

from common.transforms import checked_readers
from common.transforms.checked_readers import MetaImageReader, NrrdReader
from common.transforms.load_volume import read_volume
from common.volumes import VolumeError

pytest.importorskip("itk")

VOXELS = np.random.default_rng(0).integers(0, 900, (4, 3, 5)).astype("<i2")  # x, y, z


def packed(voxels, encoding):
    data = voxels.tobytes("F")
    if encoding == "stored":  # gzip without compression: a flipped voxel unpacks without an error but the checksum's
        return gzip.compress(data, 0, mtime=0)
    if encoding in ("gzip", "gz"):
        return gzip.compress(data, mtime=0)
    return data


def nrrd(path, encoding="gzip", data=None, voxels=VOXELS, kind="int16", endian="little", **fields):
    """Write an NRRD file, detached if `fields` have a `data file`, and return the file with its voxels."""
    name = "gzip" if encoding == "stored" else encoding
    fields = {
        "type": kind,
        "dimension": 3,
        "sizes": " ".join(map(str, voxels.shape)),
        "encoding": name,
        "endian": endian,
        "space": "left-posterior-superior",
        "space directions": "(1,0,0) (0,2,0) (0,0,3)",
        "space origin": "(0,0,0)",
    } | {key.replace("_", " "): value for key, value in fields.items()}
    header = "".join(f"{key}: {value}\n" for key, value in fields.items())
    data = packed(voxels, encoding) if data is None else data
    if "data file" in fields:
        path.write_text(f"NRRD0004\n# a comment\n{header}")
        path = path.with_name(str(fields["data file"]))
        path.write_bytes(data)
    else:
        path.write_bytes(f"NRRD0004\n{header}note:=of one: line\n\n".encode() + data)
    return path


def write(folder, name):
    """A packed scan in the format of its name: the file to read, and the file and offset of what is packed."""
    path = folder / name
    if name.endswith(".nrrd"):
        nrrd(path, name.split(".")[0])
        return path, path, path.read_bytes().index(b"\n\n") + 2
    if name.endswith(".nhdr"):
        return path, nrrd(path, name.split(".")[0], data_file="voxels"), 0
    if name.endswith(".mha"):
        data = zlib.compress(VOXELS.tobytes("F"), 0 if "stored" in name else 6)
        header = ["ObjectType = Image", "NDims = 3", "BinaryData = True", "BinaryDataByteOrderMSB = False"]
        header += ["CompressedData = True", f"CompressedDataSize = {len(data)}"]
        header += ["DimSize = 4 3 5", "ElementType = MET_SHORT", "ElementDataFile = LOCAL", ""]
        start = "\n".join(header).encode()
        path.write_bytes(start + data)
        return path, path, len(start)
    data = nib.Nifti1Image(VOXELS, np.eye(4)).to_bytes()
    path.write_bytes(gzip.compress(data, 0 if "stored" in name else 6, mtime=0))
    return path, path, 0


@pytest.mark.parametrize(
    "name",
    [
        *("gzip.nrrd", "gz.nrrd", "stored.nrrd", "gzip.nhdr", "stored.nhdr"),
        *("scan.mha", "stored.mha", "scan.nii.gz", "stored.nii.gz"),
    ],
)
def test_no_flipped_byte_changes_a_voxel_unnoticed(tmp_path, name):
    """Each byte of what is packed is flipped in turn: the file is refused, or has the same voxels."""
    path, place, start = write(tmp_path, name)
    good = np.asarray(read_volume(path))
    assert np.array_equal(good[0], VOXELS)
    whole = place.read_bytes()
    refused = 0
    for byte in range(start, len(whole), 3 if "stored" in name else 2):
        spoilt = bytearray(whole)
        spoilt[byte] ^= 16
        place.write_bytes(spoilt)
        try:
            found = np.asarray(read_volume(path))
        except VolumeError as error:
            refused += 1
            assert "\n" not in str(error) and str(error)
        else:
            assert np.array_equal(found, good), f"byte {byte} of {name}"
    assert refused > 10


@pytest.mark.parametrize(
    ("name", "byte"),  # a voxel, the checksum, gzip's number of bytes
    [("stored.nrrd", -60), ("stored.nrrd", -6), ("stored.nhdr", -1), ("stored.mha", -60), ("stored.mha", -2)],
)
def test_it_does_not_rely_on_the_checks_of_itk(tmp_path, monkeypatch, name, byte):
    """Not every build of ITK compares checksums: here, one that returns what it found."""
    import itk

    path, place, _ = write(tmp_path, name)
    reader = MetaImageReader() if name.endswith("mha") else NrrdReader()
    image = reader.read(path)
    spoilt = bytearray(place.read_bytes())
    spoilt[byte] ^= 1
    place.write_bytes(spoilt)
    if byte == -60:
        view = itk.array_view_from_image(image)
        view.flat[-20] ^= 1
    monkeypatch.setattr(ITKReader, "read", lambda self, data, **kwargs: image)
    with pytest.raises(VolumeError, match=r"^is damaged \(checksum"):
        reader.read(path)


@pytest.mark.parametrize("endian", ["little", "big"])
def test_compressed_nrrd_files_are_unpacked_once(tmp_path, monkeypatch, endian):
    """By ITK; they are unpacked again only where the checksum is not that of what it made of them."""
    path = tmp_path / "scan.nrrd"
    voxels = VOXELS.astype(">i2") if endian == "big" else VOXELS
    nrrd(path, voxels=voxels, endian=endian)
    monkeypatch.setattr(gzip, "GzipFile", lambda *_, **__: pytest.fail("unpacked a second time"))
    assert np.array_equal(np.asarray(read_volume(path))[0], VOXELS)


def test_gzip_in_several_members_and_a_header_as_of_a_large_segmentation(tmp_path):
    path = tmp_path / "scan.nrrd"
    data = VOXELS.tobytes("F")
    nrrd(path, data=gzip.compress(data[:50]) + gzip.compress(data[50:]), **{"content": 60 * "a long header "})
    path.write_bytes(
        path.read_bytes().replace(b"note:=", b"".join(b"Segment%d:=x\n" % i for i in range(9000)) + b"n:=")
    )
    try:
        read = np.asarray(read_volume(path))
    except VolumeError as error:  # a build of ITK that stops after the first
        assert "cannot be read" not in str(error)
    else:
        assert np.array_equal(read[0], VOXELS)
    assert NrrdReader.stored(path).size == len(data)


@pytest.mark.parametrize("encoding", ["raw", "gzip"])
@pytest.mark.parametrize("listed", [False, True])
def test_voxels_in_several_files(tmp_path, encoding, listed):
    """A slice a file, by name or by number, as `unu` writes them."""
    path = tmp_path / "scan.nhdr"
    nrrd(path, encoding, data_file="slice1.bin 2" if listed else "slice%d.bin 1 5 1 2")
    for z in range(5):
        (tmp_path / f"slice{z + 1}.bin").write_bytes(packed(VOXELS[..., z], encoding))
    if listed:
        names = "".join(f"slice{z + 1}.bin\n" for z in range(5))
        path.write_text(path.read_text().replace("data file: slice1.bin 2\n", "") + "data file: LIST 2\n" + names)
    assert np.array_equal(np.asarray(read_volume(path))[0], VOXELS)
    spoilt = bytearray((tmp_path / "slice4.bin").read_bytes())
    if encoding == "gzip":
        spoilt[-3] ^= 1  # the number of bytes
    else:
        spoilt += b"\0\0"
    (tmp_path / "slice4.bin").write_bytes(spoilt)
    with pytest.raises(VolumeError, match="is damaged"):
        read_volume(path)


@pytest.mark.parametrize("change", [-2, 2])
@pytest.mark.parametrize("name", ["raw.nrrd", "raw.nhdr", "gzip.nrrd", "gz.nhdr", "raw.mha", "zlib.mha", "raw.mhd"])
def test_bytes_are_as_many_as_the_header_says(tmp_path, name, change):
    """A damaged size in a header shows in the length of the file, compressed or not."""
    path = tmp_path / name
    data = VOXELS.tobytes("F")
    data = data[:change] if change < 0 else data + change * b"\0"
    encoding, ending = name.split(".")
    if ending in ("nrrd", "nhdr"):
        fields = {} if ending == "nrrd" else {"data_file": "voxels"}
        nrrd(path, encoding, data=data if encoding == "raw" else gzip.compress(data), **fields)
    else:
        data = data if encoding == "raw" else zlib.compress(data)
        local = "LOCAL" if ending == "mha" else "voxels"
        header = f"ObjectType = Image\nNDims = 3\nBinaryData = True\nCompressedData = {encoding == 'zlib'}\n"
        header += f"DimSize = 4 3 5\nElementType = MET_SHORT\nElementDataFile = {local}\n"
        path.write_bytes(header.encode() + (data if local == "LOCAL" else b""))
        (tmp_path / "voxels").write_bytes(data)
    with pytest.raises(
        VolumeError, match=rf"is damaged \(it has {120 + change} bytes of voxels, but its header says 120"
    ):
        read_volume(path)


def test_bytes_before_the_voxels(tmp_path):
    """`byte skip` counts unpacked bytes, and -1 says that the voxels are the end of the file."""
    for number, (encoding, skip, before) in enumerate(
        [("gzip", 6, b"before"), ("raw", 6, b"before"), ("raw", -1, b"n")]
    ):
        path = tmp_path / f"{number}.nhdr"
        data = before + VOXELS.tobytes("F")
        name = f"voxels{number}"
        nrrd(path, encoding, data=data if encoding == "raw" else gzip.compress(data), data_file=name, byte_skip=skip)
        assert np.array_equal(np.asarray(read_volume(path))[0], VOXELS)


@pytest.mark.parametrize("kind", ["unsigned char", "ushort", "unsigned short int", "int", "uint", "double"])
def test_types_have_their_sizes(tmp_path, kind):
    types = {"unsigned char": "u1", "ushort": "<u2", "unsigned short int": "<u2"}
    types |= {"int": "<i4", "uint": "<u4", "double": "<f8"}
    voxels = (VOXELS % 100).astype(types[kind])
    path = tmp_path / "scan.nrrd"
    nrrd(path, voxels=voxels, kind=kind)
    assert np.array_equal(np.asarray(read_volume(path))[0], voxels)
    assert NrrdReader.stored(path).size == voxels.nbytes


def test_bzip2_is_refused_by_name(tmp_path):
    path = tmp_path / "scan.nrrd"
    nrrd(path, "bzip2", data=bz2.compress(VOXELS.tobytes("F")))
    with pytest.raises(VolumeError, match="is compressed with bzip2, which ITK does not read; save it with gzip"):
        read_volume(path)


@pytest.mark.parametrize("name", ["scan.nrrd", "scan.mha"])
def test_checking_takes_memory_for_a_piece_alone(tmp_path, name):
    zeros = np.zeros((256, 256, 128), np.int16)  # 16 MiB
    path = tmp_path / name
    if name == "scan.nrrd":
        nrrd(path, voxels=zeros)
        stored = NrrdReader.stored(path)
    else:
        header = "NDims = 3\nBinaryData = True\nCompressedData = True\nDimSize = 256 256 128\n"
        header += "ElementType = MET_SHORT\nElementDataFile = LOCAL\n"
        path.write_bytes(header.encode() + zlib.compress(zeros.tobytes()))
        stored = MetaImageReader.stored(path)
    tracemalloc.start()
    try:
        checked_readers._check(stored)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6 << 20
