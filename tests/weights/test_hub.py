"""Files of the hub by name, from a hub-like server of this machine."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch
from monai.networks.nets import SegResNet
from transformers import ViTConfig, ViTModel

from common.networks import SegResNetEncoder
from common.weights import convert, load_encoder, read_encoder, save_encoder
from common.weights.hub import fetch

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CARD = b"---\nlicense: cc-by-nc-4.0\ntags:\n- medical\n---\n# A card\n"


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does where a file is asked for."""

    files: dict[str, bytes]
    stated: dict[str, str]
    broken: set[str]
    asked: list[str]

    def answer(self) -> None:
        self.asked.append(f"{self.command} {self.path}")
        repository, _, rest = self.path.lstrip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        error = None
        if repository == "org/gated":
            error = (403, "GatedRepo")
        elif repository != "org/name":
            error = (404, "RepoNotFound")
        elif revision not in ("main", "v1", COMMIT):
            error = (404, "RevisionNotFound")
        elif name not in self.files:
            error = (404, "EntryNotFound")
        if error is not None:
            self.send_response(error[0])
            self.send_header("X-Error-Code", error[1])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = self.files[name]
        digest = self.stated.get(name) or hashlib.sha256(content).hexdigest()
        begin = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if begin else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{digest}"')
        self.send_header("Content-Length", str(len(content) - begin))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "GET":
            if name in self.broken:
                self.wfile.write(content[begin : begin + len(content) // 3])
                self.wfile.flush()
                self.connection.close()
                return
            self.wfile.write(content[begin:])

    do_GET = do_HEAD = answer

    def log_message(self, *args: Any) -> None:
        pass


def net() -> SegResNet:
    torch.manual_seed(0)
    return SegResNet(init_filters=8, in_channels=1, out_channels=2, blocks_down=(1, 1), blocks_up=(1,))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    torch.save(net().state_dict(), tmp_path / "net.pt")
    save_encoder(SegResNetEncoder(net()), tmp_path / "ours.safetensors", {"method": "test"})
    files = {"sub/net.pt": (tmp_path / "net.pt").read_bytes(), "README.md": CARD}
    files["ours.safetensors"] = (tmp_path / "ours.safetensors").read_bytes()
    handler = type("OneHub", (Hub,), {"files": files, "stated": {}, "broken": set(), "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield handler
    server.shutdown()
    server.server_close()


NAME = "hf://org/name/sub/net.pt@v1"


def test_a_file_is_converted_with_its_origin_in_the_record(hub, tmp_path):
    record = convert(NAME, tmp_path / "encoder.safetensors")
    digest = hashlib.sha256(hub.files["sub/net.pt"]).hexdigest()
    expected = {"name": NAME, "commit": COMMIT, "sha256": digest, "licence": "cc-by-nc-4.0"}
    assert record["origin"] == expected and read_encoder(tmp_path / "encoder.safetensors")[1]["origin"] == expected


def test_it_is_loaded_by_name_and_then_from_the_cache(hub, monkeypatch):
    encoder = SegResNetEncoder(net())
    for parameter in encoder.parameters():
        torch.nn.init.zeros_(parameter)
    report = load_encoder(encoder, NAME)
    assert report is not None and report.covered == 1
    assert torch.equal(encoder.convInit.conv.weight, net().convInit.conv.weight)
    del hub.asked[:]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    load_encoder(encoder, NAME)
    assert hub.asked == []
    with pytest.raises(FileNotFoundError, match=r"sub/other\.pt is not in the cache, and HF_HUB_OFFLINE forbids"):
        load_encoder(encoder, "hf://org/name/sub/other.pt")


@pytest.fixture
def conversions(monkeypatch):
    """Sources that were converted."""
    module, done = sys.modules["common.weights.convert"], []
    whole = module.convert
    monkeypatch.setattr(module, "convert", lambda source, made: done.append(source) or whole(source, made))
    return done


def test_an_encoder_is_converted_again_for_another_name_or_converter(hub, conversions, monkeypatch):
    for name in (NAME, NAME, "hf://org/name/sub/net.pt@main", NAME):
        assert read_encoder(name)[1]["origin"]["name"] == name
    assert conversions == [NAME, "hf://org/name/sub/net.pt@main"]
    monkeypatch.setattr(sys.modules["common.weights.convert"], "VERSION", 0)
    read_encoder(NAME)
    assert conversions[2:] == [NAME]


def test_an_encoder_is_converted_again_for_other_settings_and_another_licence(hub, conversions, tmp_path, monkeypatch):
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "intermediate_size": 24, "image_size": 16, "patch_size": 8}
    ViTModel(ViTConfig(**sizes, num_attention_heads=3), add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    hub.files["model.safetensors"] = (tmp_path / "vit/model.safetensors").read_bytes()
    hub.files["config.json"] = b'{"num_attention_heads": 3}'
    hub.files["preprocessor_config.json"] = b'{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}'

    def found(cache):
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / cache))  # the commit and the weights are the same
        record = [read_encoder("hf://org/name/model.safetensors")[1] for _ in range(2)][1]
        return record["architecture"]["num_heads"], record["normalisation"]["mean"][0], record["origin"]["licence"]

    assert found("first") == (3, 0.5, "cc-by-nc-4.0")
    hub.files["config.json"] = b'{"num_attention_heads": 2}'
    assert found("second") == (2, 0.5, "cc-by-nc-4.0")
    hub.files["preprocessor_config.json"] = b'{"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.5, 0.5]}'
    assert found("third") == (2, 0.1, "cc-by-nc-4.0")
    hub.files["README.md"] = CARD.replace(b"cc-by-nc-4.0", b"mit")
    assert found("fourth") == (2, 0.1, "mit")
    assert len(conversions) == 4


def test_encoder_files_are_taken_as_they_are(hub):
    assert read_encoder("hf://org/name/ours.safetensors")[1]["method"] == "test"


@pytest.mark.parametrize(
    ("name", "error", "sentence"),
    [
        ("hf://org/name/none.pt", FileNotFoundError, "hf://org/name/none.pt: the hub has no such file"),
        ("hf://org/name/sub/net.pt@v9", FileNotFoundError, "the hub has no such revision"),
        ("hf://org/none/net.pt", FileNotFoundError, "the hub has no such repository, or it is private"),
        ("hf://org/gated/net.pt", PermissionError, "accept them on the page of org/gated, then `hf auth login`"),
        ("hf://org/name", ValueError, "write hf://org/name/file@revision"),
        (f"{NAME}#sha256={'0' * 64}", ValueError, "asks for another file than the hub has .its SHA-256"),
    ],
)
def test_what_cannot_be_had_is_told_in_one_sentence(hub, name, error, sentence):
    with pytest.raises(error, match=sentence) as raised:
        fetch(name)
    assert len(str(raised.value).splitlines()) == 1


def test_a_changed_file_is_refused_and_fetched_again(hub):
    good = hub.files["sub/net.pt"]
    hub.stated["sub/net.pt"] = hashlib.sha256(good).hexdigest()
    hub.files["sub/net.pt"] = good[:-9] + b"tampered!"
    with pytest.raises(ValueError, match=r"is damaged .* the hub states .* removed from the cache, fetch it again"):
        fetch(NAME)
    hub.files["sub/net.pt"] = good
    assert fetch(NAME).path.read_bytes() == good


def test_a_wrong_digest_in_the_name_leaves_the_file_in_the_cache(hub, monkeypatch):
    path = fetch(NAME).path
    with pytest.raises(ValueError, match="asks for another file"):
        fetch(f"{NAME}#sha256={'0' * 64}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetch(NAME).path == path and path.read_bytes() == hub.files["sub/net.pt"]


@pytest.fixture
def no_pauses(monkeypatch):
    """huggingface_hub tries again after 1, 2, 4, ... seconds; here at once."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


def test_a_broken_transfer_is_told_and_goes_on(hub, no_pauses):
    hub.broken.add("sub/net.pt")
    with pytest.raises(ConnectionError, match=r"sub/net\.pt@v1 could not be fetched .*: try again"):
        fetch(NAME)
    hub.broken.clear()
    assert fetch(NAME).path.read_bytes() == hub.files["sub/net.pt"]


def test_no_hub(hub, no_pauses, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match="try again"):
        fetch(NAME)
    assert json.dumps(hub.asked) == "[]"
