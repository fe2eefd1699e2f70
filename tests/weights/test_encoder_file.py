from __future__ import annotations

import json
import os
import signal
import stat
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import common.weights.encoder_file as module
from common.weights import read_encoder, save_encoder

RECORD = {"method": "MAE", "spacing": [1.0, 1.0, 2.5], "orientation": "RAS", "epochs": 3, "config_digest": None}


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(1, 2, 2)
        self.register_buffer("index", torch.arange(3))

    def architecture(self):
        return {"name": "Encoder", "in_channels": 1}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "models" / "encoder.safetensors"


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_state_and_record_come_back(path, memory_format):
    encoder = Encoder().to(memory_format=memory_format)
    save_encoder(encoder, path, RECORD)
    state, record = read_encoder(path)
    assert state.keys() == encoder.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in encoder.state_dict().items())
    assert {key: record[key] for key in RECORD} == RECORD
    assert record["format"] == module.FORMAT_VERSION and record["architecture"] == {"name": "Encoder", "in_channels": 1}
    assert record["packages"]["torch"].startswith(torch.__version__.partition("+")[0])
    assert set(record["packages"]) == {"torch", "monai", "numpy", "monai-transfer-bundles"}


def test_a_plain_module_has_no_architecture(path):
    save_encoder(nn.Linear(2, 2), path, RECORD)
    assert "architecture" not in read_encoder(path)[1]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_the_file_has_the_umasks_mode(path, umask, mode):
    before = os.umask(umask)
    try:
        save_encoder(Encoder(), path, RECORD)
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.parametrize("failing", ["save_file", "replace"])
def test_a_failure_leaves_the_old_file_and_no_other(path, monkeypatch, failing):
    save_encoder(Encoder(), path, RECORD)
    before = path.read_bytes()

    def fail(*args, **kwargs):
        if failing == "save_file":
            with open(args[1], "wb") as file:
                file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(module if failing == "save_file" else os, failing, fail)
    with pytest.raises(OSError, match="disk full"):
        save_encoder(Encoder(), path, RECORD)
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files")
def test_a_full_disk_is_named_with_the_file(path):
    """safetensors has an error of its own, without the file."""
    resource = pytest.importorskip("resource")
    ignored, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match=f"^{path} could not be written .*File too large"):
            save_encoder(nn.Linear(100, 100), path, RECORD)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert os.listdir(path.parent) == []


def test_a_record_that_json_cannot_hold(path):
    with pytest.raises(TypeError, match="JSON"):
        save_encoder(Encoder(), path, {"data": object()})
    assert not path.exists()


def missing(path):
    path.unlink()


def truncated(path):
    path.write_bytes(path.read_bytes()[:-10])


def short_header(path):
    path.write_bytes(path.read_bytes()[:5])


def pickled(path):
    torch.save({"weight": torch.zeros(2)}, path)


def without_record(path):
    save_file({"weight": torch.zeros(2)}, path, metadata={"format": "pt"})


def without_metadata(path):
    save_file({"weight": torch.zeros(2)}, path)


def newer(path):
    save_file({"weight": torch.zeros(2)}, path, metadata={"record": json.dumps({"format": 3})})


def garbled(path):
    save_file({"weight": torch.zeros(2)}, path, metadata={"record": "{not json"})


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (missing, FileNotFoundError, "no encoder file {path}: give the path .* or null to train from scratch"),
        (truncated, ValueError, "{path} is not a readable safetensors file .* may be cut short"),
        (short_header, ValueError, "{path} is not a readable safetensors file"),
        (
            pickled,
            ValueError,
            "{path} is a PyTorch checkpoint.*give the encoder.safetensors .*common.weights convert",
        ),
        (without_record, ValueError, "{path} has no record of its pre-processing.*common.weights convert"),
        (without_metadata, ValueError, "{path} has no record"),
        (newer, ValueError, "{path} has format 3, but this version reads up to 2; upgrade"),
        (garbled, ValueError, "{path} has no record"),
    ],
)
def test_files_that_are_none(path, spoil, error, message):
    save_encoder(Encoder(), path, RECORD)
    spoil(path)
    with pytest.raises(error, match=message.format(path=path)) as raised:
        read_encoder(path)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ({"format": "1"}, "format is '1'"),
        ({"architecture": ["ViTEncoder"]}, r"architecture is \['ViTEncoder'\]"),
        ({"architecture": {"patch_size": "16"}}, "architecture.patch_size is '16'"),
        ({"architecture": {"in_channels": [1]}}, r"architecture.in_channels is \[1\]"),
        ({"spatial_size": 96}, "spatial_size is 96"),
        ({"spacing": ["a", 1, 1]}, "spacing is"),
    ],
)
def test_a_malformed_record_is_one_sentence(path, entry, named):
    save_encoder(Encoder(), path, RECORD)
    save_file({"weight": torch.zeros(2)}, path, metadata={"record": json.dumps({"format": 1} | entry)})
    with pytest.raises(ValueError, match=f"encoder.safetensors has a malformed record \\({named}") as raised:
        read_encoder(path)
    assert len(str(raised.value).splitlines()) == 1


def test_no_flipped_bit_is_read(path):
    """Whichever bit of the file it is: of the header, of the record or of a tensor."""
    save_encoder(nn.Linear(2, 2), path, {"method": "MAE", "spacing": [1.0, 1.0, 2.5]})
    whole = path.read_bytes()
    for position in range(0, 8 * len(whole), 5):  # each bit of a byte in turn
        damaged = bytearray(whole)
        damaged[position // 8] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=str(path)) as raised:
            read_encoder(path)
        assert len(str(raised.value).splitlines()) == 1


def test_files_of_before_there_were_digests_are_read(path):
    save_encoder(Encoder(), path, RECORD)
    state, record = read_encoder(path)
    save_file(state, path, metadata={"record": json.dumps(record | {"format": 1})})
    old, same = read_encoder(path)
    assert same == record | {"format": 1} and old.keys() == state.keys()


def test_the_same_content_gives_the_same_bytes(path):
    encoder = Encoder()
    written = set()
    for _ in range(5):
        save_encoder(encoder, path, RECORD)
        written.add(path.read_bytes())
    assert len(written) == 1
